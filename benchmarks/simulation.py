"""A discrete-event model of workers around the sweep's own queue of tasks; workers lose their nodes.

What it models is `run_sweep` with Ray Tune: the queue hands out what is ready; a driver starts one task at a
time; workers load the model once; nodes fail, and their tasks go on elsewhere from the last checkpoint or the
last finished chunk of images.
"""

import heapq
import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from harness.engine.outcomes import Outcome
from harness.engine.queue import Phase, Queue, Story
from harness.engine.stages.context import never
from harness.engine.tasks import Task


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a task takes: seconds, and after how many of them a part of it is kept."""

    seconds: float
    grain: float


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Seconds, but for the count of GPUs."""

    gpus: int
    gpus_per_node: int = 8
    start: float = 0.0  # of a worker: imports, and loading the model
    dispatch: float = 0.0  # of the driver, for each task
    node_lives: float | None = None  # mean; None: for ever
    node_away: float = 0.0  # until another takes the place of one that failed


@dataclass(eq=False)
class _Worker:
    node: int
    warm: bool = False
    task: Task | None = None
    since: float = 0.0
    turn: int = 0  # an event of an earlier turn is of no concern


class Simulation:
    """One sweep from start to end: its phases, one after the other."""

    def __init__(
        self,
        phases: Sequence[Sequence[Task]],
        cost: Callable[[Task], Cost],
        cluster: Cluster,
        *,
        seed: int = 0,
    ) -> None:
        """Nothing happens before `run`."""

        def story() -> Story:
            for tasks in phases:
                yield Phase(tasks=tasks)
            return None

        self.cluster, self.now, self.lost_nodes = cluster, 0.0, 0
        self._queue, self._cost = Queue(story(), never), cost
        self._random = random.Random(seed)
        self._order = itertools.count()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._driver_free = 0.0
        self._again: list[Task] = []  # tasks that a lost node left
        self._kept: dict[str, float] = {}  # seconds of such a task that are in the store, by its name
        self._workers = [_Worker(node=gpu // cluster.gpus_per_node) for gpu in range(cluster.gpus)]
        self._idle = list(self._workers)
        for node in dict.fromkeys(worker.node for worker in self._workers):
            self._plan_failure(node)

    def run(self) -> float:
        """The seconds that the sweep takes."""
        self._hand_out()
        while not self._queue.finished:
            self.now, _, happens = heapq.heappop(self._events)
            happens()
        return self.now

    def _at(self, time: float, happens: Callable[[], None]) -> None:
        heapq.heappush(self._events, (time, next(self._order), happens))

    def _hand_out(self) -> None:
        while self._idle:
            task = self._again.pop(0) if self._again else self._queue.next()
            if task is None:
                return
            worker = self._idle.pop(0)
            self._driver_free = max(self._driver_free, self.now) + self.cluster.dispatch
            worker.since = self._driver_free + (0.0 if worker.warm else self.cluster.start)
            worker.task, worker.warm = task, True
            left = self._cost(task).seconds - self._kept.get(task.name, 0.0)
            self._at(worker.since + left, self._ending(worker, worker.turn))

    def _ending(self, worker: _Worker, turn: int) -> Callable[[], None]:
        def end() -> None:
            if worker.turn != turn or worker.task is None:
                return
            task, worker.task = worker.task, None
            worker.turn += 1
            self._idle.append(worker)
            self._queue.done(Outcome(task=task))
            self._hand_out()

        return end

    def _plan_failure(self, node: int) -> None:
        if self.cluster.node_lives is not None:
            lives = self._random.expovariate(1 / self.cluster.node_lives)
            self._at(self.now + lives, lambda: self._lose(node))

    def _lose(self, node: int) -> None:
        self.lost_nodes += 1
        for worker in self._workers:
            if worker.node != node:
                continue
            if worker.task is not None:
                cost, name = self._cost(worker.task), worker.task.name
                spent = max(self.now - worker.since, 0.0) + self._kept.get(name, 0.0)
                self._kept[name] = spent // cost.grain * cost.grain
                self._again.append(worker.task)
            if worker in self._idle:
                self._idle.remove(worker)
            worker.task, worker.warm, worker.turn = None, False, worker.turn + 1
        self._at(self.now + self.cluster.node_away, lambda: self._back(node))
        self._hand_out()

    def _back(self, node: int) -> None:
        self._idle += [worker for worker in self._workers if worker.node == node]
        self._plan_failure(node)
        self._hand_out()


def lower_bound(phases: Sequence[Sequence[Task]], cost: Callable[[Task], Cost], gpus: int) -> float:
    """No schedule of these tasks is shorter: all work over all GPUs, or the longest chain of tasks."""
    chains = 0.0
    for tasks in phases:
        ends: dict[str, float] = {}  # of each artifact, with a worker for every task
        for task in tasks:  # in an order in which one worker could take them
            end = cost(task).seconds + max((ends.get(name, 0.0) for name in task.needs), default=0.0)
            ends |= dict.fromkeys(task.makes, end)
        chains += max(ends.values(), default=0.0)
    work = sum(cost(task).seconds for tasks in phases for task in tasks)
    return max(work / gpus, chains)
