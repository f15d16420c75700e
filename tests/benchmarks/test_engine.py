"""The engine's benchmarks measure what they say: their sizes, their books, their ratios."""

from pathlib import Path

import pytest

from benchmarks import makespan, overhead, quickstart, resume
from benchmarks.many import QUICKSTART, TRIALS_OF_SEED, overrides
from benchmarks.simulation import Cluster, Simulation, lower_bound
from harness.config.loading.load import load_sweep
from harness.config.plan.plan import expand
from harness.store.workspace import Workspace

SIXTEEN = Path(quickstart.__file__).with_name("sixteen.yaml")


def test_a_seed_more_is_eight_trials_more() -> None:
    plan = expand(load_sweep(QUICKSTART, overrides(name="many", seeds=2, prompts=3)))
    assert len(plan.trials) == 2 * TRIALS_OF_SEED
    assert [prompt.split for prompt in plan.sweep.prompts] == ["dev"] * 3 + ["test"] * 3


@pytest.mark.parametrize("sweep", [QUICKSTART, SIXTEEN], ids=["quickstart", "sixteen"])
def test_the_naive_way_has_a_sweep_for_each_trial(sweep: Path) -> None:
    whole = expand(load_sweep(sweep))
    plans = [expand(load_sweep(sweep, own)) for own in quickstart.trials(sweep)]
    assert len(plans) == len(whole.trials) > 1
    assert [plan.trials[0].trial_id for plan in plans] == [trial.trial_id for trial in whole.trials]
    assert all(len(plan.trials) == 1 for plan in plans)


def test_a_finished_sweep_is_made_and_found_finished(tmp_path: Path) -> None:
    changes = [*overrides(name="resumed", seeds=1, prompts=1), "axes.adapter.rank=[2]"]
    holds = resume.make(str(tmp_path), changes)
    assert holds["trials"] == 4
    assert resume.run_again(str(tmp_path), changes) > 0


def test_ratios_are_of_medians_to_the_first_way() -> None:
    tune, ours = (
        [overhead.Run(seconds=seconds, processor=seconds / 2, memory=[2**20] * 11) for seconds in times]
        for times in ([10.0, 30.0, 20.0], [26.0])
    )
    first, second = overhead.as_rows({"tune": tune, "harness": ours}, 100)
    assert first["s per trial"] == "0.2000" and second["ratio"] == second["processor ratio"] == "1.30"


def test_the_model_is_of_the_engines_own_tasks(tmp_path: Path) -> None:
    """On one GPU it takes the work, a start and the driver's time; the work is the plan's."""
    costs, plan, empty = makespan.Assumed(), makespan.plan_of(1), Workspace(tmp_path)
    cost = makespan.costs_of(plan, empty, makespan.assumed_rate(costs))
    phases = makespan.phases_of(plan, empty, gpus=1)
    subjects = {subject for task in phases[0] for subject in task.subjects}
    assert subjects >= {*plan.datasets, *plan.runs, *plan.arms}
    one = Cluster(gpus=1, start=costs.worker_start, dispatch=costs.dispatch)
    tasks = sum(map(len, phases))
    work = lower_bound(phases, cost, 1)
    expected = work + costs.worker_start + costs.dispatch * tasks
    assert abs(Simulation(phases, cost, one).run() - expected) < 1e-6 * work
