"""The store: what is needed stays, what is damaged is found, what is neither can go."""

import json
from pathlib import Path

import pandas as pd
import pytest

from harness.config.plan.plan import Plan, TrainingRun
from harness.config.schema.model import SdxlModel
from harness.engine.accounting.gc import collect_garbage, find, holdings, verify
from harness.engine.stages.scoring import metric_folder
from harness.errors import WorkspaceError
from harness.results.tables import HASHES, SWEEP
from harness.store.artifact import read_json, sha256, write_json
from harness.store.workspace import BEGUN, PLAN, Workspace
from tests.engine.stages_by_hand import damage, make, make_images, own_draw, own_run, plan_sweep, train
from tests.sweeps.small import small_plan


@pytest.fixture
def plan(tmp_path: Path, tiny_config: SdxlModel, tiny_clip: str) -> Plan:
    return small_plan(tmp_path, tiny_config, tiny_clip)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "w")


def unneeded(workspace: Workspace) -> set[str]:
    return {finding.entry.name for finding in collect_garbage(workspace, delete=False)}


def steps_left(workspace: Workspace, run: TrainingRun) -> list[int]:
    collect_garbage(workspace, delete=True)
    return list(workspace.checkpoints(run.run_id))


def test_what_a_sweep_asks_for_is_needed_and_nothing_else(workspace: Workspace, plan: Plan) -> None:
    plan_sweep(workspace, plan)
    run, arm = own_run(plan), own_draw(plan)
    cells = plan.cells(arm, "dev")
    make(workspace.dataset(run.dataset.dataset_id))
    train(workspace, run, *run.checkpoints)
    test_cells = plan.cells(arm, "test")
    chunks = [
        make_images(workspace, arm.arm_id, "c1", cells),
        make_images(workspace, arm.arm_id, "c2", test_cells),
    ]
    for metric in plan.sweep.metrics:
        make(workspace.scores(metric_folder(metric), chunks[0]))
    assert unneeded(workspace) == set()
    assert {entry.needed_by for entry in holdings(workspace).entries} == {("small",)}

    others = [workspace.artifact(name) for name in ("datasets/d1", "adapters/r1/steps-000002")]
    for artifact in others:
        make(artifact)
    foreign = make_images(workspace, "draw1", "c1", cells)
    make_images(workspace, arm.arm_id, "c3", ())  # images of a seed that the sweep no longer has
    make(workspace.scores("contrast-0", chunks[0]))
    make(workspace.scores(metric_folder(plan.sweep.metrics[0]), foreign))
    clip = metric_folder(plan.sweep.metrics[0])
    assert unneeded(workspace) == {
        "datasets/d1",
        "adapters/r1/steps-000002",
        "images/draw1/c1",
        f"images/{arm.arm_id}/c3",
        f"scores/contrast-0/{arm.arm_id}-c1",
        f"scores/{clip}/draw1-c1",
    }


def test_gc_says_first_and_does_what_it_said(workspace: Workspace, plan: Plan) -> None:
    plan_sweep(workspace, plan)
    make(workspace.dataset(own_run(plan).dataset.dataset_id))
    make(workspace.checkpoint("r1", 2))
    said = collect_garbage(workspace, delete=False)
    assert [(finding.entry.name, finding.state) for finding in said] == [("adapters/r1/steps-000002", "kept")]
    assert workspace.checkpoint("r1", 2).done
    done = collect_garbage(workspace, delete=True)
    assert [(finding.entry.name, finding.state) for finding in done] == [
        ("adapters/r1/steps-000002", "removed")
    ]
    assert not (workspace.root / "adapters" / "r1").exists()
    assert [entry.name for entry in holdings(workspace).entries] == [
        f"datasets/{own_run(plan).dataset.dataset_id}"
    ]


def test_what_a_sweep_let_go_of_is_needed_by_the_other(
    workspace: Workspace, plan: Plan, tmp_path: Path, tiny_config: SdxlModel, tiny_clip: str
) -> None:
    (tmp_path / "other").mkdir()
    other = small_plan(
        tmp_path / "other", tiny_config, tiny_clip, name="other", axes={"training.steps": [4, 8]}
    )
    run = own_run(plan)
    assert own_run(other).run_id == run.run_id
    train(workspace, run, 2, 4, 8)
    plan_sweep(workspace, plan)
    plan_sweep(workspace, other)
    needed_by = {entry.place.artifact.path.name: entry.needed_by for entry in holdings(workspace).entries}
    assert needed_by == {
        "steps-000002": ("small",),
        "steps-000004": ("other", "small"),
        "steps-000008": ("other",),
    }
    for file in workspace.sweep("small").iterdir():
        file.unlink()
    workspace.sweep("small").rmdir()
    assert steps_left(workspace, run) == [4, 8]


@pytest.mark.parametrize(
    ("made", "left"),
    [
        ([(2, 0), (3, 0)], [2, 3]),  # 4 is missing: training goes on from 3
        ([(2, 0), (3, 0), (4, 0)], [2, 4]),  # all is there: nobody goes on from 3
        ([(2, 0), (3, 0), (4, 3)], [2, 3, 4]),  # 4 went on from 3, which knows how long that took
    ],
    ids=["unfinished", "finished", "resumed"],
)
def test_checkpoints_stay_while_they_are_of_use(
    made: list[tuple[int, int]], left: list[int], workspace: Workspace, plan: Plan
) -> None:
    plan_sweep(workspace, plan)
    for step, from_step in made:
        train(workspace, own_run(plan), step, from_step=from_step)
    assert steps_left(workspace, own_run(plan)) == left


def test_what_a_running_sweep_builds_stays(workspace: Workspace, plan: Plan) -> None:
    plan_sweep(workspace, plan)
    make(workspace.dataset("x1"))
    driven = Workspace(workspace.root, sweep="small")
    with driven.drive("small"), driven.dataset("x2").build() as half:
        for delete in (False, True):
            found = {one.entry.kind: one.state for one in collect_garbage(workspace, delete=delete)}
            assert found == {"dataset": "removed" if delete else "kept", "partial": "in use"}
        assert half.exists() and not workspace.dataset("x1").done
    left = workspace.root / "sweeps" / "small" / BEGUN / "x3-0123abcd"
    left.mkdir(parents=True)
    collect_garbage(workspace, delete=True)
    assert not left.exists() and not holdings(workspace).entries[1:]


def test_partial_artifacts_are_no_result(workspace: Workspace, plan: Plan) -> None:
    plan_sweep(workspace, plan)
    run = own_run(plan)
    (workspace.checkpoint(run.run_id, 2).path).mkdir(parents=True)  # its removal was killed
    entries = holdings(workspace).entries
    assert [(entry.kind, entry.needed_by) for entry in entries] == [("partial", ())]
    collect_garbage(workspace, delete=True)
    assert holdings(workspace).entries == ()


def test_an_unknown_need_removes_nothing(workspace: Workspace, plan: Plan) -> None:
    plan_sweep(workspace, plan)
    make(workspace.dataset("x1"))
    old = workspace.sweep("old")
    old.mkdir()
    with pytest.raises(WorkspaceError, match=r"old does not say .* Nothing was removed"):
        collect_garbage(workspace, delete=True)
    (old / "sweep.json").write_text(json.dumps({"name": "old", "optimiser": "sgd"}))
    with pytest.raises(WorkspaceError, match="old does not hold a sweep that this version reads"):
        collect_garbage(workspace, delete=True)
    assert workspace.dataset("x1").done
    assert set(holdings(workspace).unreadable) == {"old"}


def test_what_a_finished_sweeps_tables_name_is_needed(workspace: Workspace, plan: Plan) -> None:
    """Another version may give the same things other ids; reports and exports still read them."""
    folder = workspace.sweep("small")
    folder.mkdir(parents=True)
    write_json(folder / SWEEP, {**plan.sweep.model_dump(mode="json"), "host": "here", "failures": {}})
    trials = pd.DataFrame({"dataset_id": ["d1", "d1"], "adapter_path": ["adapters/r1/steps-000002", None]})
    trials.to_parquet(folder / "trials.parquet")
    pd.DataFrame({"path": ["images/x1/c1/a.png"]}).to_parquet(folder / "images.parquet")
    written = (SWEEP, "trials.parquet", "images.parquet")
    write_json(folder / HASHES, {name: sha256(folder / name) for name in written})
    for artifact in (workspace.dataset("d1"), workspace.checkpoint("r1", 2), workspace.images("x1", "c1")):
        make(artifact)
    make(workspace.checkpoint("r1", 4))
    assert unneeded(workspace) == {"adapters/r1/steps-000004"}


def test_scores_of_a_metric_whose_weights_are_elsewhere_stay(
    workspace: Workspace, plan: Plan, tmp_path: Path
) -> None:
    plan_sweep(workspace, plan)
    content = read_json(workspace.sweep("small") / PLAN)
    content["metrics"][0]["encoder"] = f"local-dir:{tmp_path / 'gone'}"
    write_json(workspace.sweep("small") / PLAN, content)
    arm = own_draw(plan)
    chunk = make_images(workspace, arm.arm_id, "c1", plan.cells(arm, "dev"))
    make(workspace.scores("clip_score-0", chunk))
    make(workspace.scores("contrast-0", chunk))
    assert unneeded(workspace) == {f"scores/contrast-0/{arm.arm_id}-c1"}


@pytest.mark.parametrize("how", ["truncated", "flipped", "missing", "truncated manifest", "flipped manifest"])
def test_damage_is_named_and_taken_away(how: str, workspace: Workspace) -> None:
    for name in ("x1", "x2"):
        make(workspace.dataset(name))
    damage(workspace.dataset("x1"), how)
    entries = holdings(workspace).entries
    (found,) = verify(entries, delete=False)
    assert found.state == "kept" and found.entry.name == "datasets/x1"
    assert ("manifest.json" if "manifest" in how else "file.txt") in found.faults[0]
    assert [finding.state for finding in verify(entries, delete=True)] == ["removed"]
    assert not workspace.dataset("x1").path.exists() and workspace.dataset("x2").done
    assert verify(holdings(workspace).entries, delete=False) == []


def test_every_fault_of_an_artifact_is_named(workspace: Workspace) -> None:
    make(workspace.dataset("x1"), "a.txt", "b.txt", "c.txt")
    (workspace.dataset("x1").path / "a.txt").unlink()
    (workspace.dataset("x1").path / "c.txt").write_text("other")
    (found,) = verify(holdings(workspace).entries, delete=False)
    assert [fault.split("/")[-1] for fault in found.faults] == [
        "a.txt is missing",
        "c.txt does not match its manifest",
    ]


def test_one_is_found_by_the_beginning_of_its_id(workspace: Workspace) -> None:
    make(workspace.checkpoint("abc123", 2))
    make(workspace.dataset("abd456"))
    found = holdings(workspace)
    assert find(found, "abc").name == find(found, "adapters/abc123/steps-000002").name
    with pytest.raises(WorkspaceError, match=r"2 stages begin with 'ab'.*datasets/abd456"):
        find(found, "ab")
    with pytest.raises(WorkspaceError, match="no stage 'xyz'"):
        find(found, "xyz")
