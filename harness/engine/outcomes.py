"""How tasks end: what was made, what failed and why, what is to be tried again."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from harness.engine.tasks import Task, TrainingTask


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a task ended. `reason` is one line, None if it completed.

    `reasons` are those of single runs or arms, if the others of the task completed. `lost` are the artifacts
    that it did not make: because it failed, or because a run was stopped. `again`: to be tried once more, as
    what it read was damaged and is made again, or its node was lost. `skipped`: not started, because what it
    needs was not made.
    """

    task: Task
    reason: str | None = None
    reasons: Mapping[str, str] = field(default_factory=dict)
    lost: frozenset[str] = frozenset()
    again: bool = False
    skipped: bool = False

    @property
    def failed(self) -> bool:
        """True if there is a reason."""
        return self.reason is not None

    @property
    def is_ambiguous(self) -> bool:
        """True if several runs failed together: which of them is the cause shows when each is alone."""
        return (
            self.failed
            and not self.reasons
            and not self.again
            and isinstance(self.task, TrainingTask)
            and len(self.task.runs) > 1
        )

    @property
    def retry(self) -> bool:
        """True if the task is to be tried once more."""
        return self.again or self.is_ambiguous

    def reason_of(self, lost: str) -> str | None:
        """Why an artifact was not made; None if its run was stopped."""
        return self.reasons.get(lost.split()[1], None if self.reasons else self.reason)


def failure(task: Task, reason: str, *, again: bool = False) -> Outcome:
    """The outcome of a task that made nothing."""
    return Outcome(task=task, reason=reason, lost=frozenset(task.makes), again=again)


def failures(outcomes: Sequence[Outcome]) -> dict[str, str]:
    """The reason of each failure, by the id of the dataset, run or arm."""
    found: dict[str, str] = {}
    for outcome in outcomes:
        if outcome.reasons:
            found |= outcome.reasons
        elif outcome.reason is not None:
            found |= dict.fromkeys(outcome.task.subjects, outcome.reason)
    return found
