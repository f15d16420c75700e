"""A task carried out: a plain function of a plan and a store.

It runs in this process under a debugger, or anywhere.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from harness.bench import Bench
from harness.dataset_stages import ensure_dataset
from harness.decisions import Decisions, Look, steps_of_looks
from harness.errors import HarnessError
from harness.picture_stages import ensure_all_pictures, ensure_pictures, missing_pictures
from harness.probe import look_at, up_to
from harness.spec.expand import Draw
from harness.stage import explaining_lack_of_room
from harness.stages import ensure_scores, missing_metrics
from harness.tasks import Task
from harness.training_stages import ensure_snapshots, missing_snapshots


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a task ended. `reason` is one line, null when it completed.

    `reasons` are those of single runs, where the others of the task completed.
    """

    task: Task
    reason: str | None = None
    reasons: Mapping[str, str] = field(default_factory=dict)

    @property
    def failed(self) -> bool:
        """True where there is a reason."""
        return self.reason is not None


def perform(task: Task, bench: Bench) -> dict[str, HarnessError]:
    """Make sure of everything a task names; gives the runs that could not be trained, with reasons."""
    with explaining_lack_of_room(bench.workspace.root):
        for dataset_id in task.datasets:
            bench.go_on()
            ensure_dataset(bench, dataset_id)
        failed = ensure_snapshots(bench, task.runs)
        asked = [(bench.plan.draws[draw_id], split) for draw_id, split in task.draws]
        drawable = [
            (draw, split)
            for draw, split in asked
            if not any(adapter.run_id in failed for adapter in draw.adapters)
        ]
        ensure_all_pictures(bench, [(draw, bench.plan.cells(draw, split)) for draw, split in drawable])
        for draw, split in drawable:
            bench.go_on()
            while not ensure_scores(bench, draw):
                ensure_pictures(bench, draw, bench.plan.cells(draw, split))
            if split == "dev" and (ended := bench.plan.trials_ending_with[draw.draw_id]):
                bench.report("trials", ended)
    return failed


def climb(task: Task, bench: Bench, tell: Callable[[Look], None]) -> dict[str, HarnessError]:
    """Perform a task of one training run, and tell what it has come to at each look of the scheduler.

    What ends at a look is drawn and scored before it is told. `tell` does not return where it is stopped.
    """
    (run_id,) = task.runs
    draws = list(task.draws)
    for step in steps_of_looks(bench.plan, run_id):
        so_far = up_to(bench, run_id, step)
        ended = [pair for pair in draws if steps_of(bench.plan.draws[pair[0]]) <= step]
        if failed := perform(replace(task, draws=tuple(ended)), so_far):
            return failed
        draws = [pair for pair in draws if pair not in ended]
        tell(look_at(so_far, run_id, step))
    return perform(replace(task, draws=tuple(draws)), bench)


def steps_of(draw: Draw) -> int:
    """The steps after which the last of its adapters is trained."""
    return max((adapter.steps or 0 for adapter in draw.adapters), default=0)


Performing = Callable[[Task, Bench], dict[str, HarnessError]]


def attempt(task: Task, bench: Bench, perform: Performing = perform) -> Outcome:
    """Perform a task and say how it ended; what no retry can mend is an outcome, all else is raised."""
    try:
        failed = perform(task, bench)
    except HarnessError as error:
        return Outcome(task=task, reason=str(error))
    reasons = {run_id: str(error) for run_id, error in failed.items()}
    return Outcome(task=task, reason="; ".join(reasons.values()) or None, reasons=reasons)


def satisfied(task: Task, bench: Bench) -> bool:
    """True when the store has all that a task names, so that no worker need be started for it."""
    plan, workspace = bench.plan, bench.workspace
    return (
        all(workspace.dataset(dataset_id).done for dataset_id in task.datasets)
        and not any(missing_snapshots(workspace, plan.runs[run_id]) for run_id in task.runs)
        and not any(
            missing_pictures(bench, plan.draws[draw_id], plan.cells(plan.draws[draw_id], split))
            or any(missing_metrics(bench, chunk) for chunk in workspace.image_chunks(draw_id))
            for draw_id, split in task.draws
        )
    )


def settled(task: Task, bench: Bench, decisions: Decisions) -> bool:
    """True where a task's run was stopped, or has gone through all its looks and has all that it needs."""
    (run_id,) = task.runs
    looks = steps_of_looks(bench.plan, run_id)
    return run_id in decisions.stops or (
        all(decisions.of(run_id, step) for step in looks) and satisfied(task, bench)
    )


def failures(outcomes: Sequence[Outcome]) -> dict[str, str]:
    """The reason of each failed task, by the run and the draws it was to make."""
    found: dict[str, str] = {}
    for outcome in outcomes:
        if outcome.reasons:
            found |= outcome.reasons
        elif outcome.reason is not None:
            concerned = (*outcome.task.runs, *(draw_id for draw_id, _ in outcome.task.draws))
            found |= dict.fromkeys(concerned, outcome.reason)
    return found
