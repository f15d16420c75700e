"""Runs that are compared on their way on a cluster of several nodes, while their workers are killed."""

from pathlib import Path

import pytest

from harness import results
from harness.config.loading.load import load_sweep
from harness.config.plan.plan import expand
from harness.config.schema.model import SdxlModel
from harness.engine.early_stopping import DECISIONS, Decisions
from harness.store.workspace import Workspace
from tests.engine.executors.carrying import assert_same_scores, carry_out
from tests.engine.executors.disturbing import CHANGES, carried_out
from tests.engine.executors.nodes import cluster, once
from tests.sweeps.small import write_sweep

STEPS = [10, 20, 40]
RACE = {
    **CHANGES,
    "training": {"learning_rate": 0.01, "batch_size": 2, "holdout": 1, "schedule": {"kind": "constant"}},
    "axes": {"training.learning_rate": [0.01, 0.03, 0.1, 0.3], "training.steps": STEPS},
    "compute": {**CHANGES["compute"], "max_concurrent": 2, "pack": "off"},
}
ASHA = {
    "kind": "asha",
    "grace": STEPS[0],
    "reduction_factor": 2,
    "objective": {"kind": "validation_loss"},
}


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_what_is_left_of_a_race_is_what_it_would_have_been(
    tmp_path: Path, tiny_config: SdxlModel, tiny_clip: str
) -> None:
    """Who is stopped hangs on who comes first; who is not, has the numbers of a sweep without stops."""
    sweep = write_sweep(tmp_path / "small.yaml", tiny_config, tiny_clip, **RACE, scheduler=ASHA)
    workspace = Workspace(tmp_path / "race")
    decided = workspace.sweep("small") / DECISIONS
    with cluster(tmp_path) as nodes:
        nodes.join()
        nodes.join()
        with once(decided.exists, nodes.kill_workers) as killed:
            done = carried_out(sweep, workspace.root)
        assert done.returncode == 0, done.stderr
    assert killed, "no worker was killed, so this shows nothing"
    found = results.load(workspace.root / "sweeps/small")
    assert any(row["what"] == "worker lost" for row in found.sweep["events"])

    plan = expand(load_sweep(sweep))
    stops = Decisions(plan.sweep, workspace).stops
    assert stops, "nobody was stopped, so this shows nothing"
    for run_id in plan.own_runs:
        kept = list(workspace.checkpoints(run_id))
        assert kept[-1] == (stops[run_id].step if run_id in stops else STEPS[-1])
        assert set(STEPS[: STEPS.index(kept[-1]) + 1]) <= set(kept)
    beyond = [
        t.run_id in stops and t.config.trained.training.steps > stops[t.run_id].step for t in plan.trials
    ]
    status = found.trials.set_index("trial_id")["status"]
    assert [status[t.trial_id] for t in plan.trials] == ["stopped" if one else "completed" for one in beyond]

    free = write_sweep(tmp_path / "free.yaml", tiny_config, tiny_clip, **RACE)
    whole = carry_out(expand(load_sweep(free)), tmp_path / "whole", "local").results
    dev = found.images[
        found.images["split"] == "dev"
    ]  # rounding may have another trial selected for the test
    both = dev.merge(whole.images, on=["image_id", "latent_hash"])
    assert len(both) == len(dev) and dev["trial_id"].notna().sum() >= 2 * beyond.count(False)
    assert assert_same_scores(found, whole) >= len(dev)
