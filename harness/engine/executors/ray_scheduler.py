"""Ray Tune's early stopping, with the intermediate results of earlier calls.

Tune's schedulers keep results in memory under Tune's ids; here they are replayed under the training run's own
id, stored ones first. An actor on the driver's machine tells workers which runs are stopped. (Files of the
workspace would be too late: on a network file system other nodes may see them only after seconds.)
"""

import math
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, MedianStoppingRule
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from harness.config.plan.plan import Plan
from harness.config.plan.rungs import Look
from harness.config.schema.search import AshaScheduler, MedianScheduler, StoppingScheduler
from harness.engine.early_stopping import Decision, Decisions

Answer = Callable[[Mapping[tuple[str, int], bool]], None]

LOOKS = "looks"  # in what a worker reports


@dataclass(frozen=True)
class _Run:
    """Stands for Tune's trial in what its schedulers are asked."""

    trial_id: str


class Judge(FIFOScheduler):
    """Starts trials in order, and answers which training runs Tune's rule says are to be stopped at a look.

    A pack of runs is one trial of Tune's, so no trial is stopped: `answer` is given each look's run and step
    and whether it was stopped there, and the worker, which Tune lets go on only then, asks for it.
    """

    def __init__(self, plan: Plan, decisions: Decisions, answer: Answer) -> None:
        """Everything decided so far is told to the rule again, whose answers stand already."""
        super().__init__()
        scheduler = plan.sweep.scheduler
        assert isinstance(scheduler, StoppingScheduler)
        last = max(plan.runs[run_id].checkpoints[-1] for run_id in plan.own_runs)
        self.rule, self.decisions, self.answer = _rule(scheduler, last), decisions, answer
        self.sign = 1.0 if plan.sweep.more_is_better(scheduler.objective) else -1.0
        self.known: set[str] = set()
        for decision in decisions.made.values():
            self._ask(decision.look)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Decide, in the order of the report."""
        self.hear([Look(*look) for look in result.get(LOOKS, [])])
        return str(FIFOScheduler.CONTINUE)

    def hear(self, looks: Sequence[Look]) -> None:
        """Stop or go on. A look that was decided before (its worker was lost) is answered as then."""
        if not looks:
            return
        new = [look for look in looks if self.decisions.of(look.run_id, look.step) is None]
        if new:
            self.decisions.add(*(Decision(look=look, stopped=self._ask(look)) for look in new))
        made = {(look.run_id, look.step): self.decisions.of(look.run_id, look.step) for look in looks}
        self.answer({at: decision is not None and decision.stopped for at, decision in made.items()})

    def _ask(self, look: Look) -> bool:
        """What the rule says. A run without a value is not compared, and goes on."""
        if look.value is None:
            return False
        run = _Run(look.run_id)
        if look.run_id not in self.known:
            self.known.add(look.run_id)
            self.rule.on_trial_add(None, run)
        result = {"step": look.step, "gain": self.sign * look.value}
        return bool(self.rule.on_trial_result(None, run, result) == FIFOScheduler.STOP)


def _rule(scheduler: StoppingScheduler, last: int) -> Any:
    asked = {"time_attr": "step", "metric": "gain", "mode": "max"}
    match scheduler:
        case AshaScheduler(grace=grace, reduction_factor=factor):
            return AsyncHyperBandScheduler(**asked, max_t=last, grace_period=grace, reduction_factor=factor)
        case MedianScheduler(grace=grace, min_runs=runs):
            return MedianStoppingRule(
                **asked,
                grace_period=grace,
                min_samples_required=runs,
                min_time_slice=math.inf,  # else it would pause runs, which then begin again
            )


At = tuple[str, int]  # a look's run and step


class _Board:
    """The actor. Started again, it knows nothing: then who asks fails, is tried again, and tells again."""

    def __init__(self) -> None:
        self._stopped: dict[At, bool] = {}

    def write(self, answers: Mapping[At, bool]) -> None:
        self._stopped.update(answers)

    def read(self, asked: Sequence[At]) -> list[bool]:
        return [self._stopped[at] for at in asked]


class Answers:
    """The driver's end: the board is there for the length of its block."""

    def __init__(self) -> None:
        self.name = f"answers {uuid.uuid4().hex}"
        self._board: Any = None

    def __enter__(self) -> "Answers":
        """Start the board, on this machine, which cannot be lost without the driver."""
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "scheduling_strategy": here}
        self._board = ray.remote(_Board).options(name=self.name, **options).remote()
        return self

    def __exit__(self, *raised: Any) -> None:
        """Take it down."""
        ray.kill(self._board)

    def __getstate__(self) -> dict[str, Any]:
        """Empty: Tune pickles its scheduler, but the pickle is never read."""
        return {}

    def __call__(self, answers: Mapping[At, bool]) -> None:
        """Write them up; on return they can be read."""
        ray.get(self._board.write.remote(dict(answers)))


def stopped(name: str, looks: Sequence[Look]) -> Collection[str]:
    """A worker's end: the ids of the runs that are stopped at these looks, which were told before."""
    board = ray.get_actor(name)
    answers = ray.get(board.read.remote([(look.run_id, look.step) for look in looks]))
    return {look.run_id for look, is_stopped in zip(looks, answers, strict=True) if is_stopped}
