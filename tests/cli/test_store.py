"""`harness store` on the command line."""

import json
from pathlib import Path

import pytest

from harness.config.plan.plan import Plan
from harness.config.schema.model import SdxlModel
from harness.store.workspace import Workspace
from tests.cli.command import harness
from tests.engine.stages_by_hand import damage, make, own_run, plan_sweep
from tests.sweeps.small import small_plan


@pytest.fixture
def plan(tmp_path: Path, tiny_config: SdxlModel, tiny_clip: str) -> Plan:
    return small_plan(tmp_path, tiny_config, tiny_clip)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "w")


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    """Run the command; its exit code, and all that it has said."""
    capsys.readouterr()
    code = harness(*arguments)
    said = capsys.readouterr()
    return code, said.out + said.err


def test_the_command_line(workspace: Workspace, plan: Plan, capsys: pytest.CaptureFixture[str]) -> None:
    plan_sweep(workspace, plan)
    make(workspace.dataset(own_run(plan).dataset.dataset_id), note="hello")
    make(workspace.dataset("x1"))
    where = ("--workspace", workspace.root)

    code, said = run(capsys, "store", "ls", *where)
    assert code == 0 and "no sweep" in said and "small" in said
    code, said = run(capsys, "store", "ls", "--json", *where)
    artifacts = {artifact["name"]: artifact for artifact in json.loads(said)["artifacts"]}
    assert artifacts["datasets/x1"]["needed_by"] == [] and artifacts["datasets/x1"]["bytes"] > 0

    code, said = run(capsys, "store", "show", own_run(plan).dataset.dataset_id[:6], *where)
    assert code == 0 and "hello" in said and "file.txt" in said
    code, said = run(capsys, "store", "show", "x1", "--json", *where)
    assert json.loads(said)["manifest"]["files"]["file.txt"]["bytes"] == len("content of file.txt")

    code, said = run(capsys, "store", "gc", "--json", *where)
    assert [artifact["name"] for artifact in json.loads(said)["unneeded"]] == ["datasets/x1"]
    assert workspace.dataset("x1").done
    damage(workspace.dataset("x1"), "flipped")
    code, said = run(capsys, "store", "verify", *where)
    assert code == 1 and "file.txt does not match" in said and workspace.dataset("x1").done
    code, said = run(capsys, "store", "verify", "--delete-damaged", "--json", *where)
    assert code == 0 and json.loads(said)["damaged"][0]["state"] == "removed"

    make(workspace.dataset("x1"))
    code, said = run(capsys, "store", "gc", "--delete", *where)
    assert code == 0 and "removed" in said and not workspace.dataset("x1").done
    assert "nothing to remove" in run(capsys, "store", "gc", *where)[1]
    code, said = run(capsys, "store", "ls", "--workspace", workspace.root / "nowhere")
    assert code == 2 and "there is no such folder" in said
