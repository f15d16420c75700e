"""A finished sweep is known by its mark, and by nothing less than all that its tables are made of."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

import harness
from benchmarks.many import QUICKSTART, overrides
from benchmarks.pretend import carry_out
from harness.cli import main
from harness.config.loading.load import load_sweep
from harness.config.plan.plan import Plan, expand
from harness.engine.completion import _code, marked
from harness.store.artifact import MANIFEST
from harness.store.workspace import Workspace

CHANGES = [*overrides(name="small", seeds=1, prompts=1), "axes.adapter.rank=[2]"]


@pytest.fixture(scope="module")
def plan() -> Plan:
    return expand(load_sweep(QUICKSTART, CHANGES))


@pytest.fixture(scope="module")
def workspace(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    workspace = Workspace(tmp_path_factory.mktemp("workspace"))
    carry_out(plan, workspace)
    return workspace


def rewritten(file: Path) -> None:
    """The same bytes, written later."""
    stat = file.stat()
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))


def first(workspace: Workspace, pattern: str) -> Path:
    return sorted(workspace.root.glob(pattern))[0]


def test_a_finished_sweep_is_known_and_its_tables_are_those_that_were_made(
    plan: Plan, workspace: Workspace
) -> None:
    again = carry_out(plan, workspace)
    assert not again.outcomes
    known = marked(plan, workspace)
    assert known is not None
    pd.testing.assert_frame_equal(known.summary, again.results.summary)


@pytest.mark.parametrize(
    ("pattern", "change"),
    [
        ("images/*/*/images.parquet", rewritten),
        ("scores/*/*/scores.parquet", rewritten),
        ("adapters/*/*/training_state.json", rewritten),
        ("scores/*/*/manifest.json", Path.unlink),
        ("datasets/*/manifest.json", Path.unlink),
        ("adapters/*/*/manifest.json", Path.unlink),
        ("sweeps/small/summary.parquet", lambda file: file.write_bytes(b"damaged")),
    ],
)
def test_whatever_its_tables_are_made_of_is_looked_at(
    plan: Plan, workspace: Workspace, pattern: str, change: Callable[[Path], object]
) -> None:
    assert marked(plan, workspace) is not None
    file = first(workspace, pattern)
    change(file)
    assert marked(plan, workspace) is None
    carry_out(plan, workspace)
    assert marked(plan, workspace) is not None, "what was changed is made again, and the sweep is finished"
    assert (file.parent / MANIFEST).is_file() or "sweeps" in file.parts


def test_all_that_the_page_is_rendered_from_is_code() -> None:
    package = Path(harness.__file__).parent
    templates = {str(file.relative_to(package)) for file in (package / "reporting").rglob("templates/**/*.*")}
    assert {Path(name).suffix for name in templates} == {".css", ".j2", ".js"}
    assert templates <= {line.split()[0] for line in _code()}


def test_new_images_of_a_draw_and_another_specification_are_seen(plan: Plan, workspace: Workspace) -> None:
    other = expand(load_sweep(QUICKSTART, [*CHANGES, "compute.batch_size=4"]))
    assert marked(other, workspace) is None, "sweep.json would say something else"
    arm_id = next(iter(plan.arms))
    with workspace.images(arm_id, "another").build():
        pass
    try:
        assert marked(plan, workspace) is None
    finally:
        workspace.images(arm_id, "another").remove()


def test_check_says_whether_the_selected_trial_is_confirmed(
    plan: Plan, workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = [word for change in CHANGES for word in ("--set", change)]
    command = ["check", str(QUICKSTART), *sets, "-w"]
    test_images = len(plan.sweep.seeds) * sum(prompt.split == "test" for prompt in plan.sweep.prompts)
    asked = test_images * sum(arm.waits_for_selection for arm in plan.sweep.arms)
    for place, rest in ((workspace.root / "empty", "once selected"), (workspace.root, f"{asked} 0")):
        main.app([*command, str(place)], standalone_mode=False)
        (row,) = [line for line in capsys.readouterr().out.splitlines() if "confirmation" in line]
        assert " ".join(row.split()) == f"confirmation images {asked} {rest}"


def test_what_was_not_shown_is_not_finished(plan: Plan, tmp_path: Path) -> None:
    """A mirror that could not be reached is tried again."""
    workspace = Workspace(tmp_path)
    assert carry_out(plan, workspace, shown=False).results is not None
    assert marked(plan, workspace) is None


def test_in_a_bucket_a_finished_sweep_is_known_on_another_machine(
    plan: Plan, s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    carry_out(plan, Workspace(s3))
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "another"))
    there = Workspace(s3)
    assert marked(plan, there) is not None
    assert not list(there.root.glob("scores/*")), "it was asked what there is; nothing was fetched"
    there.image_chunks(next(iter(plan.arms)))[0].remove()
    there.invalidate()
    assert marked(plan, there) is None


def test_running_it_again_loads_no_heavy_library(plan: Plan, workspace: Workspace) -> None:
    """`harness run` with nothing to make: Ray's and torch's imports would take longer than all it does."""
    page = workspace.sweep("small") / "report.html"
    page.unlink(missing_ok=True)
    carry_out(plan, workspace)
    sets = [word for change in CHANGES for word in ("--set", change)]
    program = (
        "import sys; from harness.cli.main import app; app(standalone_mode=False); "
        "print([name for name in ('ray', 'torch', 'matplotlib') if name in sys.modules])"
    )
    command = [sys.executable, "-c", program, "run", str(QUICKSTART), "-w", str(workspace.root), *sets]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "Nothing to train, generate or score" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"
