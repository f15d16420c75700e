"""A sweep that is not finished has a page of what there is: no verdict, nothing selected, nothing tested."""

import shutil
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.many import QUICKSTART, overrides
from benchmarks.pretend import carry_out
from harness.cli.growing import GrowingPage, pause
from harness.config.loading.load import load_sweep
from harness.config.plan.plan import Plan, expand
from harness.engine.collect import so_far
from harness.results.tables import FILES
from harness.store.workspace import PLAN, REPORT, Workspace
from tests.cli.command import harness

CHANGES = [*overrides(name="small", seeds=1, prompts=2), "axes.adapter.rank=[2]"]


@pytest.fixture(scope="module")
def plan() -> Plan:
    return expand(load_sweep(QUICKSTART, CHANGES))


@pytest.fixture(scope="module")
def finished(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("finished") / "w"
    carry_out(plan, Workspace(root))
    return root


@pytest.fixture
def growing(plan: Plan, finished: Path, tmp_path: Path) -> Path:
    """The same sweep before its last trial was drawn: no tables, no images of that trial."""
    root = tmp_path / "w"
    shutil.copytree(finished, root)
    for file in FILES:
        (root / "sweeps" / "small" / file).unlink()
    trial = plan.trials[-1]
    for arm in plan.arms.values():
        if (
            any(adapter.run_id == trial.run_id for adapter in arm.adapters)
            and arm.arm_id in trial.arms.values()
        ):
            shutil.rmtree(root / "images" / arm.arm_id)
    return root


def test_what_there_is_without_selection_and_p(plan: Plan, growing: Path) -> None:
    found = so_far(Workspace(growing), "small")
    assert found is not None and found.sweep["finished_at"] is None
    states = list(found.trials["status"])
    assert states.count("missing") >= 1 and states.count("completed") >= 1
    assert not found.trials["selected"].any()
    assert found.summary["p_value"].isna().all() and found.summary["p_adjusted"].isna().all()
    assert set(found.summary["split"]) == {"dev"} and set(found.images["split"]) == {"dev"}
    assert found.summary["mean_difference"].notna().any()
    assert not (growing / "sweeps" / "small" / "sweep.json").exists()


def test_the_page_says_that_it_grows(growing: Path) -> None:
    folder = growing / "sweeps" / "small"
    assert harness("report", folder) == 0
    page = (folder / REPORT).read_text()
    assert "no verdict yet" in page and "of 4 trials" in page
    assert "(selected)" not in page and "p (adjusted)" not in page and 'id="images"' not in page
    assert '"draw":[' in page and '"draw":[]' not in page


def test_a_folder_without_a_plan_is_no_sweep(growing: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (growing / "sweeps" / "small" / PLAN).unlink()
    assert harness("report", growing / "sweeps" / "small") == 2
    assert "is not a finished sweep" in capsys.readouterr().err.replace("\n", " ")


def test_a_bundle_has_every_image_and_moves(finished: Path, tmp_path: Path) -> None:
    folder = finished / "sweeps" / "small"
    assert harness("report", folder, "--bundle", tmp_path / "bundle") == 0
    moved = (tmp_path / "bundle").rename(tmp_path / "elsewhere")
    images = sorted(file.relative_to(finished) for file in finished.glob("images/*/*/*.png"))
    assert sorted(file.relative_to(moved) for file in moved.glob("images/*/*/*.png")) == images
    assert '"base":"./"' in (moved / REPORT).read_text()
    assert harness("report", folder, "--bundle", tmp_path / "packed", "--zip") == 0
    assert not (tmp_path / "packed").exists()
    names = zipfile.ZipFile(tmp_path / "packed.zip").namelist()
    assert {f"packed/{path}" for path in [REPORT, *images]} <= set(names)


def test_what_excludes_each_other_is_said(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = finished / "sweeps" / "small"
    assert harness("report", folder, "--zip") == 2
    assert "--bundle" in capsys.readouterr().err
    assert harness("report", folder, "--bundle", "x", "--output", "y") == 2
    assert "not both" in capsys.readouterr().err


def waits_for(condition: Callable[[], bool]) -> bool:
    until = time.monotonic() + 60
    while time.monotonic() < until and not condition():
        time.sleep(0.05)
    return condition()


def test_it_is_written_again_when_something_is_new(growing: Path) -> None:
    page = growing / "sweeps" / "small" / REPORT
    said: list[str] = []
    growth = GrowingPage(str(growing), "small", said.append)
    with growth.every(0.2):
        time.sleep(0.6)
        assert not page.exists(), "nothing is new"
        growth.noticed()
        assert waits_for(page.exists)
        with growth.final():
            page.write_text("the verdict")
        time.sleep(0.6)
        assert page.read_text() == "the verdict", "nothing is new since the verdict"
    assert not said


def test_a_page_that_cannot_be_written_is_said_once(growing: Path) -> None:
    folder = growing / "sweeps" / "small"
    (folder / REPORT).mkdir()
    said: list[str] = []
    growth = GrowingPage(str(growing), "small", said.append)
    with growth.every(0.1):
        growth.noticed()
        assert waits_for(lambda: bool(said))
        growth.noticed()
        time.sleep(0.4)
    assert len(said) == 1 and "cannot be written" in said[0]


def test_a_page_that_takes_long_is_written_less_often() -> None:
    assert pause(60, took=0.0) == pause(60, took=3.0) == 60
    assert pause(60, took=10.0) == pytest.approx(190), "10 s of 200 s: a twentieth"
