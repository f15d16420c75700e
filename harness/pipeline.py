"""The story of a sweep: prepare → trials → collect → confirm → collect → report.

What is made is in `stages.py`, how work is spread in `execution/`, what is read together in `collect.py`.
A task is a plain function of a plan and a store: it runs in this process under a debugger, or anywhere.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, cast, get_args

from harness.asking import next_round, with_remembered_points
from harness.bench import Bench, Event, Kind
from harness.collect import collect
from harness.decisions import Decisions, Look, as_decided, steps_of_looks
from harness.errors import HarnessError, StageError
from harness.events import Events
from harness.finished import mark, marked
from harness.inventory import planned_passes
from harness.probe import look_at, up_to
from harness.results import Results
from harness.results.stats import select_best
from harness.spec.expand import Draw, Plan, TrainingRun, Trial, expand
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

    def race(self, tasks: Sequence[Task], bench: Bench, decisions: Decisions) -> list[Outcome]:
        """Perform tasks of one training run each, look by look (`climb`), under the sweep's scheduler.

        What it decides is added to `decisions`; a task that is stopped has not failed.
        """
        ...


Announce = Callable[[str, Sequence[Task], Bench], None]


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


def run_sweep(
    bench: Bench,
    executor: Executor,
    *,
    announce: Announce,
    publish: Callable[[Results], bool],
) -> SweepRun:
    """Carry a sweep to its end from wherever it is.

    `announce` hears what starts: the stage, its tasks, and the bench with the plan that they are of.
    `publish` gets tables, and says whether all has been shown.
    """
    workspace = bench.workspace
    with explaining_lack_of_room(workspace.root), workspace.drive(bench.plan.sweep.name):
        driver = _Driver(bench, executor, announce)
        if (found := marked(driver.bench.plan, workspace)) is not None:
            return SweepRun(results=found, outcomes=[])
        with driver.events.driving():
            for results in driver.rounds():
                shown = publish(results)
            plan, left = driver.bench.plan, driver.decided()
            confirmation = confirm_tasks(plan, select_best(results.summary, plan.sweep.analysis))
            with surveyed(plan, workspace):
                confirmed = all(satisfied(task, left) for task in confirmation)
            if not confirmed:
                driver.carry_out("confirmation", confirmation, left)
                results = driver.tables()
                shown = publish(results)
            ended = results.trials["status"].isin(["completed", "stopped"]).all()
            if shown and ended and not failures(driver.outcomes):
                mark(plan, workspace)
    return SweepRun(results=results, outcomes=driver.outcomes)


class _Driver:
    """Carries out what is missing of a plan, and keeps the outcomes."""

    def __init__(self, bench: Bench, executor: Executor, announce: Announce) -> None:
        sweep = with_remembered_points(bench.plan.sweep, bench.workspace)
        self.events = Events(bench.workspace, sweep.name)
        bench = _noting(bench, self.events)
        self.bench = bench if sweep is bench.plan.sweep else replace(bench, plan=expand(sweep))
        self.executor, self.announce = executor, announce
        self.outcomes: list[Outcome] = []

    def rounds(self) -> Iterator[Results]:
        """The tables after each round of a search; of any other there is one."""
        results = None
        if self.bench.plan.trials:
            yield (results := self.trials())
        while (sweep := next_round(self.bench.plan.sweep, results)) is not None:
            self.bench = replace(self.bench, plan=expand(sweep))
            yield (results := self.trials())

    def trials(self) -> Results:
        """Everything before the selection; what the tables are read from and is damaged is made again."""
        _write_plan(self.bench.plan, self.bench.workspace)
        left = self.race()
        for stage, tasks in trial_stages(left.plan, workers=self.workers(left)):
            self.carry_out(stage, [task for task in tasks if not _hopeless(task, self.outcomes)], left)
        try:
            return self.tables()
        except StageError:
            damaged = take_away_damaged_tables(self.bench)
            if not damaged:
                raise
            self.bench.report("made again", damaged)
        return self.trials()

    def workers(self, bench: Bench) -> int:
        """For how many training runs are packed; nobody is asked where it decides nothing."""
        runs = bench.plan.runs.values()
        if bench.plan.sweep.compute.pack != "auto":
            return 1
        with surveyed(bench.plan, bench.workspace):
            is_open = any(missing_snapshots(bench.workspace, run) for run in runs)
        return self.executor.workers(bench) if is_open else 1

    def tables(self) -> Results:
        """Of what there is."""
        plan, workspace = self.bench.plan, self.bench.workspace
        return collect(plan, workspace, failures(self.outcomes), self.events.rows())

    def race(self) -> Bench:
        """Let the scheduler stop what it will; what is left to do."""
        bench, plan = self.bench, self.bench.plan
        decisions = Decisions(plan.sweep, bench.workspace)
        with surveyed(plan, bench.workspace):
            open_tasks = [task for task in race_tasks(plan) if not settled(task, bench, decisions)]
        raced: list[Outcome] = []
        if open_tasks:
            self.carry_out("controls", control_tasks(plan), bench)
            self.announce("race", open_tasks, bench)
            raced = self.executor.race(open_tasks, bench, decisions)
            self.note(raced)
        return self.decided(failed=[outcome.task.runs[0] for outcome in raced if outcome.failed])

    def decided(self, failed: Sequence[str] = ()) -> Bench:
        """The bench with what is left of the plan, so that nobody trains on what was stopped."""
        plan = self.bench.plan
        left = as_decided(plan, Decisions(plan.sweep, self.bench.workspace), failed=failed)
        return replace(self.bench, plan=left)

    def carry_out(self, stage: str, tasks: Sequence[Task], bench: Bench) -> None:
        """Those of the tasks that are not done. `bench` has the plan that they are of."""
        with surveyed(bench.plan, bench.workspace):
            open_tasks = [task for task in tasks if not satisfied(task, bench)]
            if open_tasks:
                self.announce(stage, open_tasks, bench)
        if open_tasks:
            self.note(self.executor.run(open_tasks, bench))

    def note(self, outcomes: Sequence[Outcome]) -> None:
        """Keep them. Raises Interrupted where they came to be because all is to stop."""
        self.outcomes += outcomes
        self.bench.workspace.look_again()
        if self.bench.stop():
            self.events.add("stopped", 1)
        self.bench.go_on()


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
    tasks = [_task_of(plan, pack) for pack in planned_packs(plan, workers=workers)]
    return sorted(tasks, key=lambda task: -planned_passes(plan, task.runs, task.draws))


def race_tasks(plan: Plan) -> list[Task]:
    """The same, of the runs that a scheduler may stop: each alone."""
    return [_task_of(plan, [run]) for run_id, run in plan.runs.items() if steps_of_looks(plan, run_id)]


def _task_of(plan: Plan, pack: Sequence[TrainingRun]) -> Task:
    return Task(
        name=" ".join(["run", *(run.run_id for run in pack)]),
        runs=tuple(run.run_id for run in pack),
        draws=tuple((draw.draw_id, "dev") for run in pack for draw in plan.draws_of_run(run.run_id)),
    )


def settled(task: Task, bench: Bench, decisions: Decisions) -> bool:
    """True where a task's run was stopped, or has gone through all its looks and has all that it needs."""
    (run_id,) = task.runs
    looks = steps_of_looks(bench.plan, run_id)
    return run_id in decisions.stops or (
        all(decisions.of(run_id, step) for step in looks) and satisfied(task, bench)
    )


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
