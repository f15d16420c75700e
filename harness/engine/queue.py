"""Hands out the tasks of a sweep as soon as what they need is there, whatever executor asks."""

import heapq
from collections import defaultdict
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Protocol

from harness.config.plan.plan import Plan
from harness.engine.early_stopping import Decisions
from harness.engine.outcomes import Outcome
from harness.engine.stages.context import Context, Stop
from harness.engine.tasks import Task, TrainingTask
from harness.results import Results


@dataclass(frozen=True, kw_only=True)
class Race:
    """The runs of a plan that are stopped early, and what was decided of them so far."""

    plan: Plan
    decisions: Decisions


@dataclass(frozen=True, kw_only=True)
class Phase:
    """Tasks that are carried out together: the next phase depends on all of their outcomes."""

    tasks: Sequence[Task]
    race: Race | None = None


# Yields phases, is sent the outcomes of their tasks, and returns the tables.
Story = Generator[Phase, list[Outcome], Results | None]


class Queue:
    """The tasks of a story. An executor calls `next` and `done` until it is `finished`, in one thread."""

    def __init__(self, story: Story, stop: Stop, heard: Callable[[Outcome], None] | None = None) -> None:
        """Runs the story to its first phase, or to its end if nothing is to be done.

        `heard` gets each outcome at once; the story gets those of a phase at its end.
        """
        self._story, self._stop, self._heard = story, stop, heard
        self._result: Results | None = None
        self._error: BaseException | None = None
        self.finished = False
        self.race: Race | None = None
        self._begin_with(None)

    def next(self, *, training: bool = True) -> Task | None:
        """The first task that is ready; None while none is, once a stop is requested, and at the end.

        `training`: False leaves training tasks where they are.
        """
        if self.finished or self._stop():
            return None
        heaps = [heap for heap in (self._ready if training else self._ready[:1]) if heap]
        if not heaps:
            return None
        task = self._tasks[heapq.heappop(min(heaps, key=lambda heap: heap[0]))]
        assert task is not None
        self._running += 1
        return task

    def done(self, outcome: Outcome) -> None:
        """A task that was handed out has ended. May begin the next phase, after the tables of this one."""
        self._running -= 1
        self._outcomes.append(outcome)
        if self._heard is not None:
            self._heard(outcome)
        self._settle(outcome)
        self.advance()

    def advance(self) -> None:
        """Begin the next phase if nothing of this one runs or can start. Called once more after a stop."""
        if not self.finished and not self._running and (self._stop() or not any(self._ready)):
            self._begin_with(self._outcomes)

    def result(self) -> Results:
        """What the story returned. Raises what it raised."""
        if self._error is not None:
            raise self._error
        assert self._result is not None
        return self._result

    def _begin_with(self, outcomes: list[Outcome] | None) -> None:
        """Run the story to its next phase. Its errors are kept: an executor's loop must end in order."""
        try:
            phase = next(self._story) if outcomes is None else self._story.send(outcomes)
        except StopIteration as end:
            self._result, self.finished = end.value, True
            return
        except BaseException as error:
            self._error, self.finished = error, True
            return
        self.race = phase.race
        self._tasks: list[Task | None] = list(phase.tasks)
        self._outcomes: list[Outcome] = []
        self._running = 0
        self._ready: tuple[list[int], list[int]] = ([], [])  # heaps of numbers: training tasks are the second
        made = {name for task in phase.tasks for name in task.makes}
        self._needs = [{*(task.needs & made)} for task in phase.tasks]
        self._waiting: dict[str, set[int]] = defaultdict(set)
        for number, needs in enumerate(self._needs):
            for name in needs:
                self._waiting[name].add(number)
            if not needs:
                self._make_ready(number)
        self.advance()  # where there is no task

    def _make_ready(self, number: int) -> None:
        heapq.heappush(self._ready[isinstance(self._tasks[number], TrainingTask)], number)

    def _settle(self, outcome: Outcome) -> None:
        """Those that waited for what a task made are ready; those that waited for what is lost are cut."""
        for name in outcome.task.makes:
            for number in sorted(self._waiting.pop(name, ())):
                self._needs[number].discard(name)
                if name in outcome.lost:
                    self._cut(number, name, outcome)
                if self._tasks[number] is not None and not self._needs[number]:
                    self._make_ready(number)

    def _cut(self, number: int, lost: str, outcome: Outcome) -> None:
        before = self._tasks[number]
        if before is None:
            return
        after = self._tasks[number] = before.without(lost)
        gone = [name for name in before.makes if after is None or name not in after.makes]
        if not gone:
            return
        reason = outcome.reason_of(lost)
        if reason is not None:
            reasons = {name.split()[1]: reason for name in gone}
            skipped = Outcome(task=before, reason=reason, reasons=reasons, skipped=True, again=outcome.retry)
            self._outcomes.append(skipped)
        if after is None:
            for need in self._needs[number]:
                self._waiting[need].discard(number)
        cut = Outcome(task=before, reason=reason, lost=frozenset(gone), again=outcome.retry)
        for name in gone:
            for other in sorted(self._waiting.pop(name, ())):
                self._needs[other].discard(name)
                self._cut(other, name, cut)
                if self._tasks[other] is not None and not self._needs[other]:
                    self._make_ready(other)


class Executor(Protocol):
    """Spreads tasks over workers: one outcome per task; one that fails loses no other."""

    def workers(self, ctx: Context) -> int:
        """How many tasks it can carry out side by side."""
        ...

    def carry_out(self, queue: Queue, ctx: Context) -> None:
        """Run what the queue hands out until it is finished, or until nothing runs after a stop.

        Progress goes to `ctx.report`, in this process. Training tasks of a race report at their rungs, and
        what the scheduler decides is added to the race's decisions.
        """
        ...
