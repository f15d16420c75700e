"""The story of a sweep: prepare → trials → collect → confirm → collect → report.

`tasks.py` lists the tasks, `worker.py` runs one, `executors/` spreads them, `collect.py` reads the tables.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import cast, get_args

from harness.config.plan.plan import Plan, Trial, expand
from harness.config.plan.rungs import steps_of_looks
from harness.config.schema.search import FifoScheduler
from harness.engine.collect import collect
from harness.engine.completion import mark, marked
from harness.engine.early_stopping import Decisions, as_decided
from harness.engine.events import Events
from harness.engine.search import next_round, with_remembered_points
from harness.engine.stages.context import Context, Event, Kind
from harness.engine.stages.scoring import discard_corrupt_tables, surveyed
from harness.engine.stages.training import missing_checkpoints
from harness.engine.tasks import (
    Task,
    apart,
    confirm_tasks,
    control_tasks,
    race_tasks,
    shared_out,
    trial_stages,
    trial_task,
)
from harness.engine.worker import Announce, Executor, Outcome, failures, perform, satisfied, settled
from harness.errors import ArtifactError
from harness.metrics import ensure_weights
from harness.results import Results
from harness.results.summary import select_best
from harness.store.artifact import explaining_lack_of_room, write_json
from harness.store.workspace import PLAN, Workspace


class Driver:
    """Carries out what is missing of a plan, and keeps the outcomes."""

    def __init__(self, ctx: Context, executor: Executor, announce: Announce) -> None:
        sweep = with_remembered_points(ctx.plan.sweep, ctx.workspace)
        self.events = Events(ctx.workspace, sweep.name)
        ctx = _noting(ctx, self.events)
        self.ctx = ctx if sweep is ctx.plan.sweep else replace(ctx, plan=expand(sweep))
        self.executor, self.announce = executor, announce
        self.outcomes: list[Outcome] = []

    def rounds(self) -> Iterator[Results]:
        """The tables after each round of a search; of any other there is one."""
        results = None
        if self.ctx.plan.trials:
            yield (results := self.trials())
        while (sweep := next_round(self.ctx.plan.sweep, results, self.ctx.plan.points)) is not None:
            self.ctx = replace(self.ctx, plan=expand(sweep, self.ctx.plan.points))
            yield (results := self.trials())

    def trials(self) -> Results:
        """Everything before the selection; what the tables are read from and is damaged is made again."""
        write_plan(self.ctx.plan, self.ctx.workspace)
        left = self.race()
        for artifact, tasks in trial_stages(left.plan, workers=self.workers(left)):
            self.carry_out(artifact, [task for task in tasks if not _hopeless(task, self.outcomes)], left)
        return self._tables_or(self.trials)

    def confirm(self, tasks: Sequence[Task], ctx: Context) -> Results:
        """What is left to do for the selected trial, and the tables with it."""
        self.carry_out("confirmation", tasks, ctx)

        def again() -> Results:
            self.trials()  # what was taken away may be a control's
            return self.confirm(tasks, ctx)

        return self._tables_or(again)

    def _tables_or(self, again: Callable[[], Results]) -> Results:
        """The tables; where what they are read from is damaged, it is taken away, and all is done again."""
        try:
            return self.tables()
        except ArtifactError:
            damaged = discard_corrupt_tables(self.ctx)
            if not damaged:
                raise
            self.ctx.report("made again", damaged)
        return again()

    def workers(self, ctx: Context) -> int:
        """The number of workers that packs are planned for; 1 if it decides nothing."""
        runs = ctx.plan.runs.values()
        if ctx.plan.sweep.compute.pack != "auto":
            return 1
        with surveyed(ctx.plan, ctx.workspace):
            is_open = any(missing_checkpoints(ctx.workspace, run) for run in runs)
        return self.executor.workers(ctx) if is_open else 1

    def tables(self) -> Results:
        """Of what there is."""
        plan, workspace = self.ctx.plan, self.ctx.workspace
        return collect(plan, workspace, failures(self.outcomes), self.events)

    def race(self) -> Context:
        """Let the scheduler stop what it will; what is left to do."""
        ctx, plan = self.ctx, self.ctx.plan
        if isinstance(plan.sweep.scheduler, FifoScheduler):
            return ctx
        decisions = Decisions(plan.sweep, ctx.workspace)
        with surveyed(plan, ctx.workspace):
            looked_at = [run_id for run_id in plan.runs if steps_of_looks(plan, run_id)]
            racing = [run_id for run_id in looked_at if not settled(run_id, ctx, decisions)]
        tasks: list[Task] = []
        if racing:
            self.carry_out("controls", control_tasks(plan), ctx)
            tasks = race_tasks(plan, racing, workers=self.workers(ctx))
        before = len(self.outcomes)
        while tasks:
            self.announce("race", tasks, ctx)
            tasks = self.note(self.executor.race(tasks, ctx, decisions), plan)
        failed = failures(self.outcomes[before:])
        return self.decided(failed=[run_id for run_id in failed if run_id in plan.runs])

    def decided(self, failed: Sequence[str] = ()) -> Context:
        """The context with what is left of the plan, so that stopped runs are not trained on."""
        plan = self.ctx.plan
        left = as_decided(plan, Decisions(plan.sweep, self.ctx.workspace), failed=failed)
        return replace(self.ctx, plan=left)

    def carry_out(self, artifact: str, tasks: Sequence[Task], ctx: Context) -> None:
        """Those of the tasks that are not done. `bench` has the plan that they are of."""
        while tasks:
            with surveyed(ctx.plan, ctx.workspace):
                tasks = [task for task in tasks if not satisfied(task, ctx)]
                if tasks:
                    self.announce(artifact, tasks, ctx)
            if tasks:
                ensure_weights(ctx.plan.sweep.metrics)
                shared = shared_out(tasks, ctx.plan, workers=self.executor.workers(ctx))
                tasks = self.note(self.executor.run(shared, ctx), ctx.plan)

    def note(self, outcomes: Sequence[Outcome], plan: Plan) -> list[Task]:
        """Keep them; of packs that failed as a whole, the runs, each to be carried out once more alone.

        So a run that takes its worker with it is a failed row, and its neighbours are not. Raises Interrupted
        if the outcomes are due to a requested stop.
        """
        self.outcomes += [outcome for outcome in outcomes if not outcome.blames_nobody]
        self.ctx.workspace.look_again()
        if self.ctx.stop():
            self.events.add("stopped", 1)
        self.ctx.go_on()
        lost = [outcome.task for outcome in outcomes if outcome.blames_nobody]
        again = [alone for task in lost for alone in apart(plan, task)]
        if again:
            self.ctx.report("tried again", len(again))
        return again


def _noting(ctx: Context, events: Events) -> Context:
    """The bench, whose reports of events are kept as well."""

    def report(kind: Kind | Event, count: int) -> None:
        if kind in get_args(Event):
            events.add(cast(Event, kind), count)
        else:
            events.save_seconds()
        ctx.report(kind, count)

    return replace(ctx, report=report)


def write_plan(plan: Plan, workspace: Workspace) -> None:
    """Say what the sweep needs before any work, so that `store gc` keeps it meanwhile."""
    with workspace.claim_plans():
        folder = workspace.sweep(plan.sweep.name)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / PLAN, plan.sweep.model_dump(mode="json"))
        workspace.upload_sweep(plan.sweep.name, [PLAN])


def _hopeless(task: Task, outcomes: Sequence[Outcome]) -> bool:
    """True where the training that a task's images need has failed in this call."""
    return not task.runs and task.name in {outcome.task.name for outcome in outcomes if outcome.failed}


@dataclass(frozen=True, kw_only=True)
class SweepRun:
    """What a finished call knows: the tables, and the outcome of every task that had to be run."""

    results: Results
    outcomes: list[Outcome]


def run_sweep(
    ctx: Context,
    executor: Executor,
    *,
    announce: Announce,
    publish: Callable[[Results], bool],
) -> SweepRun:
    """Carry a sweep to its end from wherever it is.

    `announce` hears what starts: the stage, its tasks, and the bench with the plan that they are of.
    `publish` gets tables, and says whether all has been shown.
    """
    workspace = ctx.workspace
    with explaining_lack_of_room(workspace.root), workspace.drive(ctx.plan.sweep.name):
        driver = Driver(ctx, executor, announce)
        if (found := marked(driver.ctx.plan, workspace)) is not None:
            return SweepRun(results=found, outcomes=[])
        with driver.events.driving():
            for results in driver.rounds():
                shown = publish(results)
            plan, left = driver.ctx.plan, driver.decided()
            confirmation = confirm_tasks(plan, select_best(results.summary, plan.sweep.analysis))
            with surveyed(plan, workspace):
                confirmed = all(satisfied(task, left) for task in confirmation)
            if not confirmed:
                results = driver.confirm(confirmation, left)
                shown = publish(results)
            ended = results.trials["status"].isin(["completed", "stopped"]).all()
            with surveyed(plan, workspace):
                whole = all(satisfied(task, left) for task in (*control_tasks(left.plan), *confirmation))
            if shown and ended and whole and not failures(driver.outcomes):
                mark(plan, workspace)
    return SweepRun(results=results, outcomes=driver.outcomes)


def run_trial(ctx: Context, trial: Trial, *, announce: Callable[[Sequence[Task]], None]) -> Results:
    """One trial in this process, with the controls it is compared with, then the tables of what there is."""
    plan, workspace = ctx.plan, ctx.workspace
    task = trial_task(plan, trial)
    events = Events(workspace, plan.sweep.name)
    with explaining_lack_of_room(workspace.root), workspace.drive(plan.sweep.name), events.driving():
        write_plan(plan, workspace)
        discard_corrupt_tables(ctx)
        announce([task])
        ensure_weights(plan.sweep.metrics)
        for error in perform(task, ctx).values():
            raise error
        workspace.look_again()
        return collect(plan, workspace, {}, events)
