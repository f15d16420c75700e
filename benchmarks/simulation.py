"""A discrete-event model of the engine: workers take tasks in order, wait for claims, and lose their nodes.

What it models is `run_sweep` with Ray Tune: one queue in the order of dispatch; a driver that starts one task
at a time; workers that load the model once; one builder of each dataset, run and draw, for whom the others
wait; nodes that fail, whose tasks go on elsewhere from the last checkpoint or the last finished chunk of
images; and the confirmation, which waits for all that is before it.
"""

import heapq
import itertools
import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial


@dataclass(frozen=True, kw_only=True)
class Item:
    """One thing of the store: how long it takes, after how long a part is kept, how many can be at it."""

    name: str
    seconds: float
    grain: float
    workers: int = 1

    @property
    def shares(self) -> tuple["Item", ...]:
        """What one worker makes each."""
        if self.workers == 1:
            return (self,)
        seconds = self.seconds / self.workers
        return tuple(
            Item(name=f"{self.name}/{number}", seconds=seconds, grain=min(self.grain, seconds))
            for number in range(self.workers)
        )


@dataclass(frozen=True, kw_only=True)
class Job:
    """A task: what it needs, which any worker may make, and then what it is there for, in this order."""

    needs: tuple[Item, ...] = ()
    makes: tuple[Item, ...]

    @property
    def steps(self) -> tuple[tuple[Item, ...], ...]:
        """The shares of all that it makes sure of, one thing after the other."""
        return tuple(item.shares for item in self.needs + self.makes)

    @property
    def items(self) -> tuple[Item, ...]:
        """All of these shares."""
        return tuple(share for step in self.steps for share in step)


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Seconds, but for the count of GPUs."""

    gpus: int
    gpus_per_node: int = 8
    start: float = 0.0  # of a worker: imports, and loading the model
    dispatch: float = 0.0  # of the driver, for each task
    node_lives: float | None = None  # mean; null: for ever
    node_away: float = 0.0  # until another takes the place of one that failed


@dataclass(eq=False)
class _Worker:
    node: int
    warm: bool = False
    job: int | None = None  # its place in the queue
    item: str | None = None  # what it makes
    since: float = 0.0
    turn: int = 0  # an event of an earlier turn is of no concern


@dataclass
class _State:
    done: dict[str, float] = field(default_factory=dict)  # seconds of each item that are in the store
    maker: dict[str, _Worker] = field(default_factory=dict)
    waiting: dict[str, list[_Worker]] = field(default_factory=dict)
    queue: list[int] = field(default_factory=list)
    open_jobs: set[int] = field(default_factory=set)
    idle: list[_Worker] = field(default_factory=list)


class Simulation:
    """Time runs on from stage to stage; workers stay warm."""

    def __init__(self, cluster: Cluster, *, seed: int = 0) -> None:
        """Nothing happens before `run`."""
        self.cluster, self.now, self.lost_nodes = cluster, 0.0, 0
        self._random = random.Random(seed)
        self._order = itertools.count()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._driver_free = 0.0
        self._jobs: Sequence[Job] = ()
        self._workers = [_Worker(node=gpu // cluster.gpus_per_node) for gpu in range(cluster.gpus)]
        self._state = _State(idle=list(self._workers))
        for node in dict.fromkeys(worker.node for worker in self._workers):
            self._plan_failure(node)

    def run(self, jobs: Sequence[Job]) -> float:
        """Carry out one stage; gives the time at its end."""
        self._jobs = jobs
        state = self._state
        state.queue, state.open_jobs = list(range(len(jobs))), set(range(len(jobs)))
        self._hand_out()
        while state.open_jobs:
            self.now, _, happens = heapq.heappop(self._events)
            happens()
        return self.now

    def seconds_kept(self) -> dict[str, float]:
        """Of each item, what the store has of it."""
        return dict(self._state.done)

    def _at(self, time: float, happens: Callable[[], None]) -> None:
        heapq.heappush(self._events, (time, next(self._order), happens))

    def _hand_out(self) -> None:
        state = self._state
        while state.idle and state.queue:
            worker, worker_job = state.idle.pop(0), heapq.heappop(state.queue)
            self._driver_free = max(self._driver_free, self.now) + self.cluster.dispatch
            ready = self._driver_free + (0.0 if worker.warm else self.cluster.start)
            worker.job, worker.warm = worker_job, True
            self._later(worker, ready, self._go_on)

    def _later(self, worker: _Worker, time: float, what: Callable[[_Worker], None]) -> None:
        turn = worker.turn

        def unless_lost() -> None:
            if worker.turn == turn:
                what(worker)

        self._at(time, unless_lost)

    def _go_on(self, worker: _Worker) -> None:
        """The next share that is not in the store: make it, or where others make all that is left, wait."""
        state = self._state
        assert worker.job is not None
        for step in self._jobs[worker.job].steps:
            missing = [item for item in step if state.done.get(item.name, 0.0) < item.seconds]
            if not missing:
                continue
            item = next((item for item in missing if item.name not in state.maker), None)
            if item is None:
                state.waiting.setdefault(missing[0].name, []).append(worker)
                return
            state.maker[item.name], worker.item, worker.since = worker, item.name, self.now
            left = item.seconds - state.done.get(item.name, 0.0)
            self._later(worker, self.now + left, partial(self._made, item))
            return
        state.open_jobs.discard(worker.job)
        worker.job = None
        state.idle.append(worker)
        self._hand_out()

    def _made(self, item: Item, worker: _Worker) -> None:
        self._state.done[item.name] = item.seconds
        self._let_go(worker)
        self._go_on(worker)

    def _let_go(self, worker: _Worker) -> None:
        state = self._state
        assert worker.item is not None
        del state.maker[worker.item]
        for other in state.waiting.pop(worker.item, ()):
            self._later(other, self.now, self._go_on)
        worker.item = None

    def _plan_failure(self, node: int) -> None:
        if self.cluster.node_lives is not None:
            lives = self._random.expovariate(1 / self.cluster.node_lives)
            self._at(self.now + lives, lambda: self._lose(node))

    def _lose(self, node: int) -> None:
        self.lost_nodes += 1
        state = self._state
        for worker in self._workers:
            if worker.node != node:
                continue
            if worker.item is not None:
                assert worker.job is not None
                item = next(item for item in self._jobs[worker.job].items if item.name == worker.item)
                spent = self.now - worker.since + state.done.get(item.name, 0.0)
                state.done[item.name] = spent // item.grain * item.grain
                self._let_go(worker)
            for waiters in state.waiting.values():
                if worker in waiters:
                    waiters.remove(worker)
            if worker.job is not None:
                heapq.heappush(state.queue, worker.job)
            if worker in state.idle:
                state.idle.remove(worker)
            worker.job, worker.warm, worker.turn = None, False, worker.turn + 1
        self._hand_out()
        self._at(self.now + self.cluster.node_away, lambda: self._back(node))

    def _back(self, node: int) -> None:
        self._state.idle += [worker for worker in self._workers if worker.node == node]
        self._plan_failure(node)
        self._hand_out()


def lower_bound(artifacts: Sequence[Sequence[Job]], gpus: int) -> float:
    """No schedule is shorter: all work over all GPUs, or the longest chain that cannot be split."""
    made: dict[str, float] = {}
    chain = 0.0
    for jobs in artifacts:
        chain += max((_alone(job, made) for job in jobs), default=0.0)
        made |= {item.name: item.seconds for job in jobs for item in job.items}
    return max(sum(made.values()) / gpus, chain)


def _alone(job: Job, made: Collection[str]) -> float:
    """What it takes where as many as can be are at all of it, and some is there already."""
    needs, makes = (
        [
            max((share.seconds for share in item.shares if share.name not in made), default=0.0)
            for item in part
        ]
        for part in (job.needs, job.makes)
    )
    return max(needs, default=0.0) + sum(makes)
