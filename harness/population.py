"""The generations of a population carried out: what each has to do, and what its members have come to.

A generation is a small sweep of its own (`spec/evolution.py`): the members as they are, `every` steps on,
the prompts and the two arms that they are compared by. It is carried out like any sweep, and what it makes is
found by the whole one. What became of its members stands in the sweep's plan, as the points of a search do.

Generations wait for their last member: nobody is replaced by what another has come to at other steps.
"""

from collections.abc import Mapping
from dataclasses import replace

from harness.bench import Bench
from harness.probe import UNPAIRED, difference, loss_at
from harness.spec.evolution import Became, population_of
from harness.spec.expand import Trial
from harness.spec.fingerprint import fingerprint
from harness.spec.objective import ProbeObjective
from harness.spec.points import trial_points
from harness.tasks import Task, trial_stages
from harness.training_stages import missing_snapshots


def generation_stages(bench: Bench, *, workers: int) -> list[tuple[str, list[Task]]]:
    """What a generation has to do, stage after stage. `bench` has its plan."""
    plan = bench.plan
    runs = {  # what members go on from is there, and would take a place in a pack
        run_id: run
        for run_id, run in plan.runs.items()
        if run_id in plan.own_runs or missing_snapshots(bench.workspace, run)
    }
    stages = trial_stages(replace(plan, runs=runs), workers=workers)
    if isinstance(population_of(plan.sweep).objective, ProbeObjective):
        return stages
    return [(stage, [replace(task, draws=()) for task in tasks]) for stage, tasks in stages]


def came_to(bench: Bench, reasons: Mapping[str, str]) -> list[Became]:
    """What the members have come to at the end of a generation, in their order. `bench` has its plan.

    `reasons` are of runs and draws that failed. Raises StageError where something that is read is damaged.
    """
    found = {trial.trial_id: _became(bench, trial, reasons) for trial in bench.plan.trials}
    return [found[fingerprint("trial", spec=spec)] for _, spec in trial_points(bench.plan.sweep)]


def _became(bench: Bench, trial: Trial, reasons: Mapping[str, str]) -> Became:
    plan, sweep = bench.plan, bench.plan.sweep
    objective = sweep.meant(population_of(sweep).objective)
    concerned = [trial.run_id]
    if isinstance(objective, ProbeObjective):
        concerned += [trial.draws[str(name)] for name in (objective.arm, objective.control)]
    for identity in concerned:
        if identity in reasons:
            return Became(None, reasons[identity])
    if not isinstance(objective, ProbeObjective):
        look = loss_at(bench, trial.run_id, trial.spec.training.steps)
        return Became(look.value, look.reason)
    arm, control = (plan.draws[draw_id] for draw_id in concerned[1:])
    cells = [cell for draw in (arm, control) for cell in plan.cells(draw, "dev")]
    value = difference(bench, arm, control, cells, metric=str(objective.metric))
    return Became(value, UNPAIRED if value is None else None)
