"""The story of a sweep: prepare → trials → collect → confirm → collect → report.

Which tasks there are is in `tasks.py`, how one is carried out in `performing.py`, who sees to all of them in
`driver.py`, how they are spread in `execution/`, and what is read together in `collect.py`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from harness.bench import Bench
from harness.collect import collect
from harness.driver import Announce, Driver, Executor, write_plan
from harness.events import Events
from harness.finished import mark, marked
from harness.performing import Outcome, failures, perform, satisfied
from harness.results import Results
from harness.results.stats import select_best
from harness.spec.expand import Trial
from harness.stage import explaining_lack_of_room
from harness.stages import surveyed, take_away_damaged_tables
from harness.tasks import Task, confirm_tasks, trial_task


@dataclass(frozen=True, kw_only=True)
class SweepRun:
    """What a finished call knows: the tables, and the outcome of every task that had to be run."""

    results: Results
    outcomes: list[Outcome]


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
        driver = Driver(bench, executor, announce)
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
                results = driver.confirm(confirmation, left)
                shown = publish(results)
            ended = results.trials["status"].isin(["completed", "stopped"]).all()
            if shown and ended and not failures(driver.outcomes):
                mark(plan, workspace)
    return SweepRun(results=results, outcomes=driver.outcomes)


def run_trial(bench: Bench, trial: Trial, *, announce: Callable[[Sequence[Task]], None]) -> Results:
    """One trial in this process, with the controls it is compared with, then the tables of what there is."""
    plan, workspace = bench.plan, bench.workspace
    task = trial_task(plan, trial)
    events = Events(workspace, plan.sweep.name)
    with explaining_lack_of_room(workspace.root), workspace.drive(plan.sweep.name), events.driving():
        write_plan(plan, workspace)
        take_away_damaged_tables(bench)
        announce([task])
        for error in perform(task, bench).values():
            raise error
        workspace.look_again()
        return collect(plan, workspace, {}, events)
