"""The story of a sweep: prepare → trials → collect → confirm → collect → report.

What is made is in `stages.py`, how work is spread in `execution/`, what is read together in `collect.py`.
A task is a plain function of a plan and a store: it runs in this process under a debugger, or anywhere.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, cast, get_args

from harness.bench import Bench, Event, Kind
from harness.collect import collect
from harness.errors import HarnessError, StageError
from harness.events import Events
from harness.finished import mark, marked
from harness.inventory import planned_passes
from harness.results import Results
from harness.results.stats import select_best
from harness.spec.expand import Draw, Plan, Trial
from harness.spec.packing import planned_packs
from harness.stage import explaining_lack_of_room, write_json
from harness.stages import (
    ensure_all_pictures,
    ensure_pictures,
    ensure_scores,
    missing_metrics,
    missing_pictures,
    surveyed,
    take_away_damaged_tables,
)
from harness.training_stages import ensure_dataset, ensure_snapshots, missing_snapshots
from harness.workspace import PLAN, Workspace


@dataclass(frozen=True, kw_only=True)
class Task:
    """A unit of dispatch: things of the store that one worker makes sure of, in this order."""

    name: str
    datasets: tuple[str, ...] = ()
    runs: tuple[str, ...] = ()
    draws: tuple[tuple[str, str], ...] = ()  # (draw_id, split)


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


class Executor(Protocol):
    """Spreads tasks over workers: one outcome per task, in order; one that fails loses no other."""

    def workers(self, bench: Bench) -> int:
        """How many tasks it can carry out side by side."""
        ...

    def run(self, tasks: Sequence[Task], bench: Bench) -> list[Outcome]:
        """Perform all tasks and wait for them. Progress goes to `bench.report`, in this process."""
        ...


@dataclass(frozen=True, kw_only=True)
class SweepRun:
    """What a finished call knows: the tables, and the outcome of every task that had to be run."""

    results: Results
    outcomes: list[Outcome]


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


def attempt(task: Task, bench: Bench) -> Outcome:
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


def run_sweep(
    bench: Bench,
    executor: Executor,
    *,
    announce: Callable[[str, Sequence[Task]], None],
    publish: Callable[[Results], bool],
) -> SweepRun:
    """Carry a sweep to its end from wherever it is.

    `announce` hears what starts; `publish` gets tables, and says whether all has been shown.
    """
    plan, workspace = bench.plan, bench.workspace
    events = Events(workspace, plan.sweep.name)
    bench = _noting(bench, events)
    outcomes: list[Outcome] = []

    def carry_out(stage: str, tasks: Sequence[Task]) -> None:
        with surveyed(plan, workspace):
            open_tasks = [task for task in tasks if not satisfied(task, bench)]
            if open_tasks:
                announce(stage, open_tasks)
        if open_tasks:
            outcomes.extend(executor.run(open_tasks, bench))
            workspace.look_again()
            if bench.stop():
                events.add("stopped", 1)
            bench.go_on()

    def carry_out_trials() -> Results:
        compute, workers = plan.sweep.compute, 1
        if compute.pack == "auto" and any(missing_snapshots(workspace, run) for run in plan.runs.values()):
            workers = executor.workers(bench)
        for stage, tasks in trial_stages(plan, workers=workers):
            carry_out(stage, [task for task in tasks if not _hopeless(task, outcomes)])
        try:
            return collect(plan, workspace, failures(outcomes), events.rows())
        except StageError:
            damaged = take_away_damaged_tables(bench)
            if not damaged:
                raise
            bench.report("made again", damaged)
        return carry_out_trials()

    with explaining_lack_of_room(workspace.root), workspace.drive(plan.sweep.name):
        if (results := marked(plan, workspace)) is not None:
            return SweepRun(results=results, outcomes=[])
        with events.driving():
            _write_plan(plan, workspace)
            results = carry_out_trials()
            shown = publish(results)
            confirmation = confirm_tasks(plan, select_best(results.summary, plan.sweep.analysis))
            with surveyed(plan, workspace):
                confirmed = all(satisfied(task, bench) for task in confirmation)
            if not confirmed:
                carry_out("confirmation", confirmation)
                results = collect(plan, workspace, failures(outcomes), events.rows())
                shown = publish(results)
            if shown and (results.trials["status"] == "completed").all() and not failures(outcomes):
                mark(plan, workspace)
    return SweepRun(results=results, outcomes=outcomes)


def run_trial(bench: Bench, trial: Trial, *, announce: Callable[[Sequence[Task]], None]) -> Results:
    """One trial in this process, with the controls it is compared with, then the tables of what there is."""
    plan, workspace = bench.plan, bench.workspace
    task = trial_task(plan, trial)
    with explaining_lack_of_room(workspace.root), workspace.drive(plan.sweep.name):
        _write_plan(plan, workspace)
        take_away_damaged_tables(bench)
        announce([task])
        for error in perform(task, bench).values():
            raise error
        workspace.look_again()
        return collect(plan, workspace, {})


def _noting(bench: Bench, events: Events) -> Bench:
    """The bench, whose reports of events are kept as well."""

    def report(kind: Kind | Event, count: int) -> None:
        if kind in get_args(Event):
            events.add(cast(Event, kind), count)
        bench.report(kind, count)

    return replace(bench, report=report)


def _write_plan(plan: Plan, workspace: Workspace) -> None:
    """Say what the sweep needs before any work, so that nobody removes it as superfluous meanwhile."""
    with workspace.claim_plans():
        folder = workspace.sweep(plan.sweep.name)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / PLAN, plan.sweep.model_dump(mode="json"))
        workspace.upload_sweep(plan.sweep.name, [PLAN])


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


def control_tasks(plan: Plan) -> list[Task]:
    """Datasets, then controls that need no training on both splits: each made once, whatever the trials."""
    datasets = [Task(name=f"dataset {dataset_id}", datasets=(dataset_id,)) for dataset_id in plan.datasets]
    controls = [
        Task(name=f"control {draw.arm} {draw.draw_id}", draws=((draw.draw_id, "dev"), (draw.draw_id, "test")))
        for draw in plan.control_draws
    ]
    return datasets + controls


def trial_stages(plan: Plan, *, workers: int = 1) -> list[tuple[str, list[Task]]]:
    """What is carried out before the selection; the tasks of one stage wait for nothing but each other.

    `workers` are those that training runs are packed for, where `compute.pack` leaves it open.

    Training that takes several processes is a stage of its own: its task holds all of them, and drawing
    needs one.
    """
    controls, trials = control_tasks(plan), trial_tasks(plan, workers=workers)
    if plan.sweep.compute.training_workers == 1:
        return [("trials", controls + trials)]
    training = [replace(task, draws=()) for task in trials]
    drawing = [replace(task, runs=()) for task in trials]
    return [("controls", controls), ("training", training), ("trials", drawing)]


def trial_tasks(plan: Plan, *, workers: int = 1) -> list[Task]:
    """One task per pack of training runs: train it, then draw and score the dev pictures of its snapshots.

    The longest first, so that no worker is left alone with a long one at the end (Graham 1969).
    """
    tasks = [
        Task(
            name=" ".join(["run", *(run.run_id for run in pack)]),
            runs=tuple(run.run_id for run in pack),
            draws=tuple((draw.draw_id, "dev") for run in pack for draw in plan.draws_of_run(run.run_id)),
        )
        for pack in planned_packs(plan, workers=workers)
    ]
    return sorted(tasks, key=lambda task: -planned_passes(plan, task.runs, task.draws))


def _hopeless(task: Task, outcomes: Sequence[Outcome]) -> bool:
    """True where the training that a task's pictures need has failed in this call."""
    return not task.runs and task.name in {outcome.task.name for outcome in outcomes if outcome.failed}


def confirm_tasks(plan: Plan, best: str | None) -> list[Task]:
    """Test pictures of the trial selected on dev, and of the controls that are drawn with adapters."""
    trial = next((trial for trial in plan.trials if trial.trial_id == best), None)
    if trial is None or not any(prompt.split == "test" for prompt in plan.sweep.prompts):
        return []
    draws = [draw for draw in draws_of_trial(plan, trial) if draw.adapters]
    return [
        Task(name=f"confirm {draw.arm} {draw.draw_id}", draws=((draw.draw_id, "test"),)) for draw in draws
    ]


def trial_task(plan: Plan, trial: Trial) -> Task:
    """Everything one trial needs, its controls included, as one task."""
    draws = draws_of_trial(plan, trial)
    others = [adapter.run_id for draw in draws for adapter in draw.adapters if adapter.run_id is not None]
    runs = dict.fromkeys([trial.run_id, *others])
    return Task(
        name=f"trial {trial.index} {trial.trial_id}",
        datasets=tuple(
            dict.fromkeys(dataset.dataset_id for run_id in runs for dataset in plan.runs[run_id].datasets)
        ),
        runs=tuple(runs),
        draws=tuple((draw.draw_id, "dev") for draw in draws),
    )


def draws_of_trial(plan: Plan, trial: Trial) -> list[Draw]:
    """A trial's arms in the order of the sweep."""
    return [plan.draws[draw_id] for draw_id in trial.draws.values()]
