"""Ray Tune as the engine: one run of Tune for a whole sweep, one trial of Tune's per task.

Tune asks its search algorithm for trials, and here that is the sweep's queue: it suggests what is ready. So
workers start once and keep their models to the end. Tune dispatches, retries and places; the store alone says
what is finished. A lost worker, node or driver costs only the work since the last checkpoint.
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
from ray.tune.execution import class_cache
from ray.tune.search import Searcher

from harness.config.plan.rungs import IntermediateResult
from harness.config.schema.compute import ComputeConfig
from harness.engine.executors.data_parallel import train_on_workers
from harness.engine.executors.ray_callbacks import Asked, Losses, Stopping, last_error
from harness.engine.executors.ray_cluster import (
    check_all_nodes_see,
    check_it_fits,
    connected,
    of_one_process,
    workers,
)
from harness.engine.executors.ray_scheduler import RUNGS, Board, Scheduler, stopped, wait_for_work
from harness.engine.executors.timeout import EndingTheProcess, minutes_for, note_of, too_long
from harness.engine.outcomes import Outcome, failure
from harness.engine.queue import Queue
from harness.engine.stages.context import Context, Event, Kind
from harness.engine.tasks import Task, TrainingTask
from harness.engine.worker import Tell, attempt

REPORT_EVERY_SECONDS = 2.0
IDLE_SECONDS = 60.0  # a worker without a task is kept so long for the next one

# Tune would copy AWS's keys into the command line of each worker, for every user of the machine to read, and
# into Ray's logs. Workers on this machine inherit the environment; other nodes have credentials of their own:
# the check that all nodes see the workspace needs them before.
class_cache.ENV_VARS_TO_PROPAGATE -= {
    name for name in class_cache.ENV_VARS_TO_PROPAGATE if name.startswith("AWS_")
}


class RayTuneExecutor:
    """Runs tasks through `tune.Tuner`: on the cluster at `address`, else on this machine.

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
        return workers(ctx.compute)

    def carry_out(self, queue: Queue, ctx: Context) -> None:
        """Run all tasks of the queue, in one run of Tune."""
        self._connect(ctx)
        sign = f"stop {uuid.uuid4().hex}"
        stopping, losses = Stopping(ctx.stop, sign), Losses(ctx.report)
        away = replace(ctx, stop=Asked(sign), report=_silent)
        with _storage(ctx) as storage, Board() as board:
            tasks = _Suggested(queue, ctx, losses, board)
            tuner = tune.Tuner(
                _trainable(away, board.name),
                tune_config=tune.TuneConfig(
                    search_alg=tasks,
                    num_samples=-1,
                    scheduler=Scheduler(lambda: queue.race, board.answer),
                    reuse_actors=True,
                    trial_dirname_creator=lambda trial: trial.trial_id,
                ),
                run_config=tune.RunConfig(
                    name=ctx.sweep,
                    storage_path=storage,
                    verbose=0,
                    failure_config=tune.FailureConfig(max_failures=ctx.compute.max_failures),
                    callbacks=[losses, _Ends(tasks), stopping],  # a loss is counted before its task ends
                    stop=stopping,
                ),
            )
            tuner.fit()
        tasks.close()

    def _connect(self, ctx: Context) -> None:
        if not self._connected:
            alone = self._connection.enter_context(connected(self.address))
            self._connected = True
            check_it_fits(ctx.compute, alone=alone)
            check_all_nodes_see(ctx.workspace)


class _Payload:
    """A pickled task on its way to a worker; None for a worker that waits for the next one.

    Tune copies a trial's configuration, prints it, and keeps it to the end: this is never copied, has a short
    text, and is emptied when its task has ended. `wakes`: so often were idle workers woken before.
    """

    def __init__(self, number: int, task: Task | None, wakes: int) -> None:
        self.number, self.content, self.wakes = number, pickle.dumps(task), wakes

    def __deepcopy__(self, memo: Any) -> "_Payload":
        return self

    def __repr__(self) -> str:
        return f"task {self.number}"


class _Suggested(Searcher):
    """Suggests the tasks of the queue as they get ready, and takes their outcomes."""

    def __init__(self, queue: Queue, ctx: Context, losses: Losses, board: Board) -> None:
        super().__init__()
        self._queue, self._ctx, self._losses, self._board = queue, ctx, losses, board
        self._room = workers(ctx.compute)
        self._running: dict[str, Task | None] = {}  # by Tune's trial id; None: idle
        self._told: dict[str, dict[str, Any]] = {}  # what workers said last of a task that has ended
        self._number = 0
        self._most = 0  # tasks that ran at once: so many workers were started
        self._may_idle = False

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles its search algorithm, and never reads it."""
        return {}

    def suggest(self, trial_id: str) -> Any:
        """The next task as a trial's configuration; None if none is ready, FINISHED at the end."""
        queue, limit = self._queue, self._ctx.compute.max_concurrent
        if queue.finished:
            return Searcher.FINISHED
        tasks = [task for task in self._running.values() if task is not None]
        if limit is not None and len(tasks) >= limit:
            return None
        several = self._ctx.compute.training_workers > 1
        training = sum(isinstance(task, TrainingTask) for task in tasks)
        task = queue.next(training=not several or training < self._room)
        idle = len(self._running) - len(tasks)
        if task is None and (several or not self._may_idle or len(tasks) + idle >= self._most):
            return None  # where several processes train a run, an idle worker would hold what they need
        if task is None:
            self._board.start()
        else:
            note_of(task, self._ctx).unlink(missing_ok=True)
        self._running[trial_id] = task
        self._number += 1
        return {"task": _Payload(self._number, task, self._board.wakes)}

    def told(self, trial: Any, result: dict[str, Any]) -> None:
        """A worker's report."""
        for kind, count in result.get("progress", {}).items():
            self._ctx.report(kind, count)
        if result.get("ended"):
            self._told[trial.trial_id] = result

    def ended(self, trial: Any, *, error: bool) -> None:
        """A trial of Tune's has ended, and is not tried again."""
        task = self._running.pop(trial.trial_id, None)
        told = self._told.pop(trial.trial_id, None)
        trial.config["task"].content = b""
        trial.run_metadata.metric_analysis = {}  # Tune's running means, which nothing reads: 20 KiB a trial
        trial.run_metadata.metric_n_steps = {}
        if task is None:
            self._may_idle = False  # until a task ends
            return
        self._may_idle = True
        self._most = max(self._most, 1 + sum(running is not None for running in self._running.values()))
        self._queue.done(self._outcome(task, trial, told, error=error))
        if any(running is None for running in self._running.values()):
            self._board.wake()

    def _outcome(self, task: Task, trial: Any, told: dict[str, Any] | None, *, error: bool) -> Outcome:
        if error:
            minutes, note = minutes_for(task, self._ctx.compute), note_of(task, self._ctx)
            late = too_long(minutes, note) if minutes else None
            again = trial.trial_id in self._losses.without_fault
            if again:
                self._ctx.report("tried again", 1)
            return failure(task, late or _one_line(last_error(trial)), again=again)
        if told is None:
            return failure(task, "the worker ended without a report")
        return Outcome(
            task=task,
            reason=told["reason"],
            reasons=dict(told["reasons"]),
            lost=frozenset(told["lost"]),
            again=told["again"],
        )

    def close(self) -> None:
        """After Tune's run: what it did not end was stopped."""
        for trial_id, task in list(self._running.items()):
            if self._running.pop(trial_id) is not None and task is not None:
                self._queue.done(failure(task, "stopped"))
        self._queue.advance()

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Nothing: `ended` hears of it, with the trial's error."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the store is what a sweep is resumed from."""

    def restore(self, checkpoint_path: str) -> None:
        """Never called."""


class _Ends(tune.Callback):
    """Hands what Tune hears of its trials on."""

    def __init__(self, tasks: _Suggested) -> None:
        self._tasks = tasks

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles its callbacks, and a live display cannot be."""
        return {}

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        self._tasks.told(trial, result)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._tasks.ended(trial, error=False)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._tasks.ended(trial, error=True)


def _trainable(ctx: Context, board: str) -> Any:
    compute = ctx.compute
    several = compute.training_workers > 1
    trainer = train_on_workers if several else None

    def run(config: dict[str, Any], carried: bytes) -> None:
        _use_threads(compute)
        ctx = _opened(carried)
        task: Task | None = pickle.loads(config["task"].content)
        progress = _Batched()
        if task is None:
            wait_for_work(board, IDLE_SECONDS, config["task"].wakes, ctx.stop)
            tune.report({"progress": {}})
            return
        equipped = replace(ctx, report=progress.add, trainer=trainer)
        outcome = _within_time(task, equipped, partial(progress.tell, board))
        tune.report(
            {
                "progress": dict(progress.counts),
                "ended": True,
                "reason": outcome.reason,
                "reasons": dict(outcome.reasons),
                "lost": sorted(outcome.lost),
                "again": outcome.again,
            }
        )

    trainable = tune.with_parameters(run, carried=pickle.dumps(ctx))
    one = of_one_process(compute)
    if several:
        return tune.with_resources(trainable, partial(_resources, one))
    return tune.with_resources(trainable, {"cpu": one.pop("CPU"), "gpu": one.pop("GPU"), **one})


def _resources(one: dict[str, float], config: dict[str, Any]) -> tune.PlacementGroupFactory:
    """What a task holds while several processes train a run: those ask for resources of their own."""
    task = pickle.loads(config["task"].content)
    # Tune wants a trial to hold something: a byte.
    held = {"memory": 1} if isinstance(task, TrainingTask) else {k: v for k, v in one.items() if v}
    return tune.PlacementGroupFactory([held])


@lru_cache(maxsize=1)
def _opened(carried: bytes) -> Context:
    """The context that a worker was sent, opened once."""
    opened: Context = pickle.loads(carried)
    return opened


def _within_time(task: Task, ctx: Context, tell: Tell) -> Outcome:
    """Within its time, if there is a limit: else this process ends, and Tune starts another."""
    minutes = minutes_for(task, ctx.compute)
    if minutes is None:
        return attempt(task, ctx, tell)
    watchdog = EndingTheProcess(minutes, note_of(task, ctx))
    with watchdog.running():
        return attempt(task, replace(ctx, step=watchdog.step), tell)


class _Batched:
    """Counts handed to Tune at most every other second: each hand-over stops the worker until it is read."""

    def __init__(self) -> None:
        self.counts: Counter[Kind | Event] = Counter()
        self.handed_over = time.monotonic()

    def add(self, kind: Kind | Event, count: int) -> None:
        self.counts[kind] += count
        if time.monotonic() - self.handed_over > REPORT_EVERY_SECONDS:
            self._hand_over({})

    def tell(self, board: str, results: Sequence[IntermediateResult]) -> Collection[str]:
        """Hand over what runs report at their rungs; gives those that are stopped.

        Tune's report returns when the scheduler has dealt with it, and its answers are on the board.
        """
        self._hand_over({RUNGS: [astuple(result) for result in results]})  # Tune flattens mappings
        return stopped(board, results)

    def _hand_over(self, more: dict[str, Any]) -> None:
        counts = dict(self.counts)
        self.counts.clear()
        self.handed_over = time.monotonic()
        tune.report({"progress": counts, **more})


def _silent(kind: Kind | Event, count: int) -> None:
    """Stands in for the driver's report, which cannot travel; the worker puts its own in place."""


def _use_threads(compute: ComputeConfig) -> None:
    import torch

    torch.set_num_threads(max(1, int(compute.cpus_per_trial)))


def _one_line(error: Any) -> str:
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
    folder = ctx.workspace.sweep(ctx.sweep) / ".tune"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        yield str(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
