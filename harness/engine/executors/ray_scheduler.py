"""Ray Tune's early stopping, with the intermediate results of earlier calls.

Tune's schedulers keep results in memory under Tune's ids; here they are replayed under the training run's own
id, stored ones first. An actor on the driver's machine tells workers which runs are stopped. (Files of the
workspace would be too late: on a network file system other nodes may see them only after seconds.)
"""

import math
import time
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, MedianStoppingRule
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from harness.config.plan.rungs import IntermediateResult
from harness.config.schema.search import AshaScheduler, MedianScheduler, StoppingScheduler
from harness.engine.early_stopping import Decision
from harness.engine.queue import Race

Answer = Callable[[Mapping[tuple[str, int], bool]], None]

RUNGS = "rungs"  # in what a worker reports
POLL_SECONDS = 0.2


class Scheduler(FIFOScheduler):
    """Starts tasks in order, and hands what racing runs report to the pruner of the queue's race.

    A pack of runs is one trial of Tune's, so Tune stops no trial: the worker, which goes on only when its
    report was dealt with, asks for the answers.
    """

    def __init__(self, race: Callable[[], Race | None], answer: Answer) -> None:
        super().__init__()
        self._race, self._answer = race, answer
        self._pruner: tuple[Race, Pruner] | None = None

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Decide, in the order of the reports."""
        race = self._race()
        if (reported := result.get(RUNGS)) and race is not None:
            if self._pruner is None or self._pruner[0] is not race:
                self._pruner = race, Pruner(race, self._answer)
            self._pruner[1].hear([IntermediateResult(*one) for one in reported])
        return str(FIFOScheduler.CONTINUE)

    def __getstate__(self) -> dict[str, Any]:
        """Empty: Tune pickles its scheduler, but the pickle is never read."""
        return {}


@dataclass(frozen=True)
class _Run:
    """Stands for Tune's trial in what its schedulers are asked."""

    trial_id: str


class Pruner:
    """Answers which training runs of a race Tune's rule stops at a rung.

    `answer` is given each rung's run and step and whether the run was stopped there.
    """

    def __init__(self, race: Race, answer: Answer) -> None:
        """Everything decided so far is told to the rule again, whose answers stand already."""
        plan, self.decisions, self.answer = race.plan, race.decisions, answer
        scheduler = plan.sweep.scheduler
        assert isinstance(scheduler, StoppingScheduler)
        last = max(plan.runs[run_id].checkpoints[-1] for run_id in plan.own_runs)
        self.rule = _rule(scheduler, last)
        self.sign = 1.0 if plan.sweep.more_is_better(scheduler.objective) else -1.0
        self.known: set[str] = set()
        for decision in self.decisions.made.values():
            self._ask(decision.result)

    def hear(self, results: Sequence[IntermediateResult]) -> None:
        """Stop or go on. A rung that was decided before (its worker was lost) is answered as then."""
        new = [one for one in results if self.decisions.of(one.run_id, one.step) is None]
        if new:
            self.decisions.add(*(Decision(result=one, stopped=self._ask(one)) for one in new))
        made = {(one.run_id, one.step): self.decisions.of(one.run_id, one.step) for one in results}
        self.answer({at: decision is not None and decision.stopped for at, decision in made.items()})

    def _ask(self, result: IntermediateResult) -> bool:
        """What the rule says. A run without a value is not compared, and goes on."""
        if result.value is None:
            return False
        run = _Run(result.run_id)
        if result.run_id not in self.known:
            self.known.add(result.run_id)
            self.rule.on_trial_add(None, run)
        value = {"step": result.step, "objective": self.sign * result.value}
        return bool(self.rule.on_trial_result(None, run, value) == FIFOScheduler.STOP)


def _rule(scheduler: StoppingScheduler, last: int) -> Any:
    asked = {"time_attr": "step", "metric": "objective", "mode": "max"}
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


At = tuple[str, int]  # a rung's run and step


class _Board:
    """The actor. After a restart it is empty: a worker that asks fails, is tried again, and reports again."""

    def __init__(self) -> None:
        self._stopped: dict[At, bool] = {}
        self._wakes = 0

    def write(self, answers: Mapping[At, bool]) -> None:
        self._stopped.update(answers)

    def read(self, asked: Sequence[At]) -> list[bool]:
        return [self._stopped[at] for at in asked]

    def wake(self, times: int) -> None:
        self._wakes = times

    def wakes(self) -> int:
        return self._wakes


class Board:
    """What the driver tells workers while they run a task. The actor starts when it is first needed."""

    def __init__(self) -> None:
        self.name = f"board {uuid.uuid4().hex}"
        self.wakes = 0  # so often were idle workers woken
        self._actor: Any = None

    def __enter__(self) -> "Board":
        return self

    def __exit__(self, *raised: Any) -> None:
        """Take it down."""
        if self._actor is not None:
            ray.kill(self._actor)

    def start(self) -> None:
        """Start the actor, on this machine, which cannot be lost without the driver."""
        if self._actor is None:
            here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
            options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "scheduling_strategy": here}
            self._actor = ray.remote(_Board).options(name=self.name, **options).remote()

    def answer(self, answers: Mapping[At, bool]) -> None:
        """Write answers; on return they can be read."""
        self.start()
        ray.get(self._actor.write.remote(dict(answers)))

    def wake(self) -> None:
        """End the waiting of idle workers."""
        self.start()
        self.wakes += 1
        self._actor.wake.remote(self.wakes)


def stopped(board: str, results: Sequence[IntermediateResult]) -> Collection[str]:
    """A worker's end: the ids of the runs that are stopped at these rungs, which were reported before."""
    actor = ray.get_actor(board)
    answers = ray.get(actor.read.remote([(result.run_id, result.step) for result in results]))
    return {result.run_id for result, is_stopped in zip(results, answers, strict=True) if is_stopped}


def wait_for_work(board: str, seconds: float, wakes: int, stop: Callable[[], bool]) -> None:
    """An idle worker's end: until the driver wakes it once more than `wakes` times, at most so long."""
    actor, deadline = ray.get_actor(board), time.monotonic() + seconds
    while time.monotonic() < deadline and not stop() and ray.get(actor.wakes.remote()) <= wakes:
        time.sleep(POLL_SECONDS)
