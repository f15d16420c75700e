"""The story of a sweep: make what is missing → collect, until all searches are content → confirm → collect.

`tasks.py` lists what makes what is missing, `queue.py` hands it out, `worker.py` runs one task, `executors/`
spread them, `collect.py` reads the tables.
"""

from collections import Counter
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from typing import cast, get_args

from harness.config.plan.plan import Plan, Trial, expand
from harness.config.plan.rungs import rung_steps
from harness.config.schema.search import FifoScheduler
from harness.engine.collect import collect
from harness.engine.completion import mark, marked
from harness.engine.early_stopping import Decisions, as_decided, restricted
from harness.engine.events import Events
from harness.engine.outcomes import Outcome, failure, failures
from harness.engine.queue import Executor, Phase, Queue, Race, Story
from harness.engine.search import next_guidances, next_round, with_remembered
from harness.engine.stages.context import Context, Event, Kind
from harness.engine.stages.scoring import discard_corrupt_tables
from harness.engine.stages.training import missing_checkpoints
from harness.engine.tasks import ImagesTask, Task, TrainingTask, Wish, confirm_tasks, missing_tasks
from harness.engine.worker import run_task
from harness.errors import ArtifactError
from harness.metrics import ensure_weights
from harness.results import Results
from harness.results.summary import select_best
from harness.store.artifact import explaining_lack_of_room, write_json
from harness.store.workspace import PLAN, Workspace

MOST_RETRIES = 10  # of phases in which an artifact was damaged or a node was lost
UNMADE = "its task ended without an error, but did not make it"

Announce = Callable[[str, Plan, Sequence[Task]], None]  # a heading, the sweep's plan, its tasks
Phases = Generator[Phase, list[Outcome], None]


@dataclass(frozen=True, kw_only=True)
class SweepRun:
    """What a finished call knows: the tables, and the outcome of every task that had to be run."""

    results: Results
    outcomes: list[Outcome]


def run_sweep(
    plan: Plan,
    ctx: Context,
    executor: Executor,
    *,
    announce: Announce,
    publish: Callable[[Results], bool],
) -> SweepRun:
    """Carry a sweep to its end from wherever it is.

    `announce` hears what starts: a heading, the plan, and the tasks. `publish` gets tables, and says whether
    all has been shown.
    """
    workspace = ctx.workspace
    with explaining_lack_of_room(workspace.root), workspace.drive(plan.sweep.name):
        driver = Driver(plan, ctx, executor, announce, publish)
        if (found := marked(driver.plan, workspace)) is not None:
            return SweepRun(results=found, outcomes=[])
        with driver.events.driving():
            queue = Queue(driver.story(), ctx.stop, driver.heard)
            if not queue.finished:
                executor.carry_out(queue, driver.ctx)
            return SweepRun(results=queue.result(), outcomes=driver.outcomes)


class Driver:
    """What the driver of a sweep knows while it is carried out."""

    def __init__(
        self,
        plan: Plan,
        ctx: Context,
        executor: Executor,
        announce: Announce,
        publish: Callable[[Results], bool],
    ) -> None:
        sweep = with_remembered(plan.sweep, ctx.workspace)
        self.plan = plan if sweep is plan.sweep else expand(sweep)
        self.events = Events(ctx.workspace, sweep.name)
        self.ctx = _noting(ctx, self.events)
        self.executor, self.announce, self.publish = executor, announce, publish
        self.outcomes: list[Outcome] = []
        self.alone: set[str] = set()  # runs that failed in a pack, whose cause was another run perhaps
        self.retries = 0
        self.open_arms = Counter[str]()  # how many tasks of this phase are to generate images of an arm

    def story(self) -> Story:
        """Yields the phases of the sweep, is sent the outcomes of their tasks, and returns the tables."""
        workspace, results, shown = self.ctx.workspace, None, False
        while True:
            if self.plan.trials:
                results = yield from self._trials()
                shown = self.publish(results)
            sweep = next_round(self.plan.sweep, results, self.plan.points) or next_guidances(
                self.plan, results
            )
            if sweep is None:
                break
            self.plan = expand(sweep, self.plan.points)
        assert results is not None
        confirmed = yield from self._confirmation(results)
        if confirmed is not None:
            results = confirmed
            shown = self.publish(results)
        ended = results.trials["status"].isin(["completed", "stopped"]).all()
        if shown and ended and not failures(self.outcomes):
            mark(self.plan, workspace)
        return results

    def heard(self, outcome: Outcome) -> None:
        """Count a trial once all of its own dev images are there."""
        for arm_id in () if outcome.failed else _dev_arms(outcome.task):
            self.open_arms[arm_id] -= 1
            if not self.open_arms[arm_id] and (ended := self.plan.trials_ending_with[arm_id]):
                self.ctx.report("trials", ended)

    def _trials(self) -> Generator[Phase, list[Outcome], Results]:
        """Everything before the selection, then the tables."""
        write_plan(self.plan, self.ctx.workspace)
        while True:
            yield from self._carry_out("trials", self._missing)
            if (results := self._tables()) is not None:
                return results

    def _missing(self, race: Race | None) -> list[Task]:
        return missing_tasks(self._wish(race), self.ctx.workspace)

    def _confirmation(self, results: Results) -> Generator[Phase, list[Outcome], Results | None]:
        """The test images of the selected trial, then the tables with them; None if nothing was missing."""
        best = select_best(results.summary, self.plan.sweep.analysis)
        repaired = self.retries

        def missing(race: Race | None) -> list[Task]:
            repairs = self._missing(race) if self.retries > repaired else []
            return repairs or confirm_tasks(self._wish(None), self.ctx.workspace, best)

        if not missing(None):
            return None
        while True:
            yield from self._carry_out("confirmation", missing)
            if (found := self._tables()) is not None:
                return found

    def _carry_out(self, heading: str, missing: Callable[[Race | None], list[Task]]) -> Phases:
        """Phase after phase, until nothing is missing but what failed."""
        before, retried = set[str](), False
        while True:
            race = self._race()
            tasks = missing(race)
            names = {task.name for task in tasks}
            if names <= before and not retried:  # nothing; or what tasks should have made, and did not
                self.outcomes += [failure(task, UNMADE) for task in tasks]
                return
            before = names
            ensure_weights(self.plan.sweep.metrics)
            self.announce(heading, self.plan, tasks)
            self.open_arms = Counter(arm_id for task in tasks for arm_id in _dev_arms(task))
            retried = self._note((yield Phase(tasks=tasks, race=race)))

    def _race(self) -> Race | None:
        """The runs that are stopped early, if the scheduler may still stop one; else None."""
        if isinstance(self.plan.sweep.scheduler, FifoScheduler):
            return None
        race = Race(plan=self.plan, decisions=Decisions(self.plan.sweep, self.ctx.workspace))
        return race if self._racing(race) else None

    def _racing(self, race: Race | None) -> list[str]:
        """The runs that have a rung without a decision, or are not at their end."""
        if race is None:
            return []
        failed, decisions = failures(self.outcomes), race.decisions
        with self.ctx.workspace.listing():
            return [
                run_id
                for run_id, run in race.plan.runs.items()
                if run_id not in failed
                and run_id not in decisions.stops
                and (steps := rung_steps(race.plan, run_id))
                and (
                    not all(decisions.of(run_id, step) for step in steps)
                    or missing_checkpoints(self.ctx.workspace, run)
                )
            ]

    def _wish(self, race: Race | None) -> Wish:
        failed = failures(self.outcomes)
        runs = [run_id for run_id in failed if run_id in self.plan.runs]
        decisions = race.decisions if race else Decisions(self.plan.sweep, self.ctx.workspace)
        return Wish(
            plan=as_decided(self.plan, decisions, failed=runs),
            workers=lambda: self.executor.workers(self.ctx),
            racing=self._racing(race),
            failed=failed,
            alone=self.alone,
        )

    def _tables(self) -> Results | None:
        """The tables of what there is; None if what they are read from was damaged, and was removed."""
        plan, workspace = self.plan, self.ctx.workspace
        try:
            return collect(plan, workspace, failures(self.outcomes), self.events)
        except ArtifactError:
            damaged = discard_corrupt_tables(plan, workspace)
            if not damaged:
                raise
        self.retries += 1
        self.ctx.report("made again", damaged)
        workspace.invalidate()
        return None

    def _note(self, outcomes: Sequence[Outcome]) -> bool:
        """Keep the outcomes, but of what is tried again: each run of a failed pack alone. Whether any is.

        So a run that ends its worker is a failed row, and its neighbours are not. Raises Interrupted if the
        outcomes are due to a requested stop.
        """
        self.ctx.workspace.invalidate()
        if self.ctx.stop():
            self.events.add("stopped", 1)
        self.ctx.go_on()
        again = [outcome for outcome in outcomes if outcome.retry and not outcome.skipped]
        self.alone.update(
            run.run_id
            for outcome in again
            if outcome.is_ambiguous and isinstance(outcome.task, TrainingTask)
            for run in outcome.task.runs
        )
        self.retries += any(outcome.again for outcome in again)
        final = self.retries > MOST_RETRIES
        self.outcomes += [outcome for outcome in outcomes if not outcome.retry or (final and outcome.again)]
        if ambiguous := sum(outcome.is_ambiguous for outcome in again):
            self.ctx.report("tried again", ambiguous)
        return bool(again)


def _dev_arms(task: Task) -> list[str]:
    if not isinstance(task, ImagesTask):
        return []
    return [arm.arm_id for arm, cells in task.wanted if any(cell.split == "dev" for cell in cells)]


def _noting(ctx: Context, events: Events) -> Context:
    """The context, with reports of incidents kept as well."""

    def report(kind: Kind | Event, count: int) -> None:
        if kind in get_args(Event):
            events.add(cast(Event, kind), count)
        else:
            events.made(cast(Kind, kind), count)
        ctx.report(kind, count)

    return replace(ctx, report=report)


def write_plan(plan: Plan, workspace: Workspace) -> None:
    """Say what the sweep needs before any work, so that `store gc` keeps it meanwhile."""
    with workspace.plans_locked():
        folder = workspace.sweep(plan.sweep.name)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / PLAN, plan.sweep.model_dump(mode="json"))
        workspace.upload_sweep(plan.sweep.name, [PLAN])


def run_trial(
    plan: Plan, ctx: Context, trial: Trial, *, announce: Callable[[Sequence[Task]], None]
) -> Results:
    """One trial in this process, with the controls it is compared with, then the tables of what there is."""
    workspace = ctx.workspace
    events = Events(workspace, plan.sweep.name)
    alone = replace(
        restricted(plan, (trial,), {}), arms={name: plan.arms[name] for name in trial.arms.values()}
    )
    wish = Wish(plan=alone, workers=lambda: 1, splits=("dev",))
    with explaining_lack_of_room(workspace.root), workspace.drive(plan.sweep.name), events.driving():
        write_plan(plan, workspace)
        discard_corrupt_tables(plan, workspace)
        tasks = missing_tasks(wish, workspace)
        announce(tasks)
        ensure_weights(plan.sweep.metrics)
        for task in tasks:
            for error in run_task(task, ctx).values():
                raise error
        workspace.invalidate()
        return collect(plan, workspace, {}, events)
