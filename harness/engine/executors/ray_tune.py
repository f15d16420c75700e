"""Ray Tune as the engine: one Tune trial per task, on this machine or on a cluster.

Tune dispatches, retries and places; the store alone says what is finished. So a lost worker, node or driver
costs only the work since the last checkpoint. Workers are reused and keep their models. Ray is imported when
there is something to do.
"""

import contextlib
import pickle
import shutil
import time
import uuid
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import astuple, replace
from functools import lru_cache, partial
from typing import Any

import ray
from ray import tune

from harness.config.plan.rungs import Look
from harness.config.schema.compute import ComputeConfig
from harness.engine.early_stopping import Decisions
from harness.engine.executors.data_parallel import train_on_workers
from harness.engine.executors.ray_callbacks import NODE_LOSSES, Asked, Losses, Stopping
from harness.engine.executors.ray_cluster import (
    at_once,
    check_all_nodes_see,
    check_it_fits,
    connected,
    of_one_process,
    takes_several_processes,
    workers,
)
from harness.engine.executors.ray_scheduler import LOOKS, Answers, Judge, stopped
from harness.engine.executors.timeout import EndingTheProcess, minutes_for, note_of, too_long
from harness.engine.stages.context import Context, Event, Kind
from harness.engine.tasks import Task
from harness.engine.worker import Outcome, Performing, attempt, climb, perform

REPORT_EVERY_SECONDS = 2.0


class RayTuneExecutor:
    """Fans tasks out through `tune.Tuner`: on the cluster at `address`, else on this machine.

    Connects when there is something to do, and then stays connected to the end of its block.
    """

    def __init__(self, address: str | None = None) -> None:
        self.address = address
        self._connection = contextlib.ExitStack()
        self._connected = False

    def __enter__(self) -> "RayTuneExecutor":
        """Nothing is connected before there is something to do."""
        return self

    def __exit__(self, *raised: Any) -> None:
        """Leave Ray; one of this process alone ends."""
        self._connection.__exit__(*raised)

    def workers(self, ctx: Context) -> int:
        """As many as the cluster has room for now."""
        self._connect(ctx)
        return workers(ctx.plan.sweep.compute)

    def run(self, tasks: Sequence[Task], ctx: Context) -> list[Outcome]:
        """Perform all tasks; tasks start in order, so what others wait for is never behind them."""
        return self._carry_out(tasks, ctx, None)

    def race(self, tasks: Sequence[Task], ctx: Context, decisions: Decisions) -> list[Outcome]:
        """Perform tasks look by look, and stop the training runs that Tune's scheduler says."""
        outcomes = self._carry_out(tasks, ctx, decisions)
        return [
            Outcome(task=outcome.task) if decisions.stops.keys() >= {*outcome.task.runs} else outcome
            for outcome in outcomes
        ]

    def _carry_out(self, tasks: Sequence[Task], ctx: Context, decisions: Decisions | None) -> list[Outcome]:
        self._connect(ctx)
        outcomes, lost = _tuned(tasks, ctx, decisions)
        for _ in range(NODE_LOSSES):  # a lost node uses up no try; Tune counts it as one where none is left
            if not lost or ctx.stop():
                break
            numbers = sorted(lost)
            ctx.report("tried again", len(numbers))
            again, lost_again = _tuned([tasks[number] for number in numbers], ctx, decisions)
            outcomes.update(zip(numbers, again.values(), strict=True))
            lost = {numbers[number] for number in lost_again}
        return list(outcomes.values())

    def _connect(self, ctx: Context) -> None:
        if not self._connected:
            alone = self._connection.enter_context(connected(self.address))
            self._connected = True
            check_it_fits(ctx.plan.sweep.compute, alone=alone)
            check_all_nodes_see(ctx.workspace)


def _tuned(
    tasks: Sequence[Task], ctx: Context, decisions: Decisions | None
) -> tuple[dict[int, Outcome], set[int]]:
    """One run of Tune: the outcome of each task by its number, in order; and those that lost nodes ended."""
    compute = ctx.plan.sweep.compute
    sign = f"stop {uuid.uuid4().hex}"
    stopping, losses = Stopping(ctx.stop, sign), Losses(ctx.report)
    ctx = replace(ctx, stop=Asked(sign))
    for task in tasks:
        note_of(task, ctx).unlink(missing_ok=True)
    with _storage(ctx) as storage, _judging(ctx, decisions) as (judge, board):
        tuner = tune.Tuner(
            _trainable(tasks, ctx, compute, board=board),
            param_space={"task": tune.grid_search(list(range(len(tasks))))},
            tune_config=tune.TuneConfig(
                max_concurrent_trials=at_once(tasks, compute),
                scheduler=judge,
                reuse_actors=True,
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=tune.RunConfig(
                name=ctx.plan.sweep.name,
                storage_path=storage,
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=compute.max_failures),
                callbacks=[_Progress(ctx), stopping, losses],
                stop=stopping,
            ),
        )
        outcomes = _outcomes(tasks, tuner.fit(), ctx)
    return dict(enumerate(outcomes)), losses.left


@contextlib.contextmanager
def _judging(ctx: Context, decisions: Decisions | None) -> Iterator[tuple[Judge | None, str | None]]:
    """Tune's scheduler, and where workers find its answers; null where nothing is to be decided."""
    if decisions is None:
        yield None, None
        return
    with Answers() as answers:
        yield Judge(ctx.plan, decisions, answers), answers.name


def _trainable(tasks: Sequence[Task], ctx: Context, compute: ComputeConfig, *, board: str | None) -> Any:
    several = takes_several_processes(tasks, compute)
    trainer = train_on_workers if several else None

    def perform_task(config: dict[str, Any], carried: bytes) -> None:
        _use_threads(compute)

        tasks, ctx = _opened(carried)
        progress = _Batched()
        equipped = replace(ctx, report=progress.add, trainer=trainer)
        performing = partial(climb, tell=partial(progress.tell, board)) if board else perform
        outcome = _attempt(tasks[config["task"]], equipped, performing)
        ended = {"reason": outcome.reason, "reasons": dict(outcome.reasons), "ended": True}
        tune.report({"progress": dict(progress.counts), **ended})

    # A plan is megabytes for a large sweep: sent once through the object store, and opened once per worker.
    carried = pickle.dumps((list(tasks), replace(ctx, report=_silent)))
    trainable = tune.with_parameters(perform_task, carried=carried)
    if several:  # its processes ask for resources of their own; Tune wants a trial to hold something: a byte
        return tune.with_resources(trainable, {"cpu": 0, "gpu": 0, "memory": 1})
    asked = of_one_process(compute)  # what is not trained takes one process
    return tune.with_resources(trainable, {"cpu": asked.pop("CPU"), "gpu": asked.pop("GPU"), **asked})


@lru_cache(maxsize=1)
def _opened(carried: bytes) -> tuple[list[Task], Context]:
    """What a worker was sent. Opening a plan of 2,000 runs takes longer than all that Tune does per trial."""
    opened: tuple[list[Task], Context] = pickle.loads(carried)
    return opened


def _attempt(task: Task, ctx: Context, performing: Performing) -> Outcome:
    """Within its time, if there is a limit: else this process ends, and Tune starts another."""
    minutes = minutes_for(task, ctx.plan.sweep.compute)
    if minutes is None:
        return attempt(task, ctx, performing)
    watchdog = EndingTheProcess(minutes, note_of(task, ctx))
    with watchdog.running():
        workspace = ctx.workspace.while_waiting(watchdog.paused)
        return attempt(task, replace(ctx, workspace=workspace, step=watchdog.step), performing)


class _Batched:
    """Counts handed to Tune at most every other second: each hand-over stops the worker until it is read."""

    def __init__(self) -> None:
        self.counts: Counter[Kind | Event] = Counter()
        self.handed_over = time.monotonic()

    def add(self, kind: Kind | Event, count: int) -> None:
        self.counts[kind] += count
        if time.monotonic() - self.handed_over > REPORT_EVERY_SECONDS:
            self._hand_over({})

    def tell(self, board: str, looks: Sequence[Look]) -> Collection[str]:
        """Hand over what runs have come to; gives those that are stopped.

        Tune's report returns when the scheduler has dealt with it, and its answers are on the board.
        """
        self._hand_over({LOOKS: [astuple(look) for look in looks]})  # Tune flattens mappings
        return stopped(board, looks)

    def _hand_over(self, more: dict[str, Any]) -> None:
        counts = dict(self.counts)
        self.counts.clear()
        self.handed_over = time.monotonic()
        tune.report({"progress": counts, "ended": False, **more})


def _silent(kind: Kind | Event, count: int) -> None:
    """Stands in for the driver's report, which cannot travel; the worker puts its own in place."""


def _use_threads(compute: ComputeConfig) -> None:
    import torch

    torch.set_num_threads(max(1, int(compute.cpus_per_trial)))


class _Progress(tune.Callback):
    """Hands what workers report on to the driver's display."""

    def __init__(self, ctx: Context) -> None:
        self.ctx = ctx

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles its callbacks, and a live display cannot be."""
        return {}

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        for kind, count in result.get("progress", {}).items():
            self.ctx.report(kind, count)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Of what ended, the last word is read and nothing else: Tune's running means are 20 KiB a trial."""
        trial.run_metadata.metric_analysis = {}
        trial.run_metadata.metric_n_steps = {}


def _outcomes(tasks: Sequence[Task], grid: tune.ResultGrid, ctx: Context) -> list[Outcome]:
    """One outcome per task, in the order of the tasks, whatever became of its trial."""
    found: dict[int, Outcome] = {}
    for result in grid:
        if result.config is None:  # its worker ended before the first word; the task is among the lost
            continue
        number = result.config["task"]
        if result.error is not None:
            minutes = minutes_for(tasks[number], ctx.plan.sweep.compute)
            timeout = too_long(minutes, note_of(tasks[number], ctx)) if minutes else None
            found[number] = Outcome(task=tasks[number], reason=timeout or _one_line(result.error))
        elif result.metrics and result.metrics.get("ended"):
            told = result.metrics
            found[number] = Outcome(task=tasks[number], reason=told["reason"], reasons=told["reasons"])
    lost = "the worker ended without saying how"
    return [found.get(number, Outcome(task=task, reason=lost)) for number, task in enumerate(tasks)]


def _one_line(error: Exception) -> str:
    """The cause behind Ray's wrapping, without the traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = lines[-1] if lines else "no message"
    if isinstance(error, ray.exceptions.RayActorError):
        detail = told.partition(" Some common causes")[0]  # Ray's advice on Ray follows
        return f"its worker died or was killed, perhaps for want of memory: {detail}"
    return f"{type(error).__name__}: {told}"


@contextlib.contextmanager
def _storage(ctx: Context) -> Iterator[str]:
    """Where Tune keeps its own books while it runs. Ours are the store, so these are thrown away."""
    folder = ctx.workspace.sweep(ctx.plan.sweep.name) / ".tune"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        yield str(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
