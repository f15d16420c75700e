"""How far a sweep is, asked of the store alone; its page in a browser."""

import json
import shutil
import webbrowser
from pathlib import Path

import pytest

from benchmarks.many import QUICKSTART, overrides
from benchmarks.pretend import carry_out
from harness.config.loading.load import load_sweep
from harness.config.plan.plan import expand
from harness.results.tables import FILES
from harness.store.workspace import REPORT, Workspace
from tests.cli.command import harness

CHANGES = [*overrides(name="small", seeds=1, prompts=2), "axes.adapter.rank=[2]"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("finished") / "w"
    carry_out(expand(load_sweep(QUICKSTART, CHANGES)), Workspace(place))
    return place


def test_a_finished_sweep(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert harness("status", root / "sweeps/small") == 0
    said = capsys.readouterr().out
    assert said.startswith("small finished · ") and "last sign of life" in said
    assert "4 trials planned · 0 training runs stopped early" in said


def test_what_is_missing_is_not_done(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(root, tmp_path / "w")
    folder = tmp_path / "w/sweeps/small"
    for file in FILES:
        (folder / file).unlink()
    shutil.rmtree(tmp_path / "w/images")
    assert harness("status", folder, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["state"] == "not running" and found["failed"] == {}
    assert found["counts"]["training steps"]["missing"] == 0
    asked, missing = (found["counts"]["adapter images"][name] for name in ("asked", "missing"))
    assert asked == missing > 0
    assert found["rates"]["images"] > 0 and found["seen"]
    with Workspace(tmp_path / "w").drive("small"):
        assert harness("status", folder) == 0
    said = capsys.readouterr().out
    assert said.startswith("small running · ") and " a minute" in said


def test_a_folder_without_a_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert harness("status", tmp_path / "sweeps/none") == 2
    assert "no sweep was begun here" in capsys.readouterr().err


def test_the_page_is_opened_or_named(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, opened = root / "sweeps/small", list[str]()
    page = folder / REPORT
    page.unlink(missing_ok=True)
    assert harness("open", folder) == 2
    assert f"harness report {folder}" in capsys.readouterr().err
    assert harness("report", folder) == 0

    def no_browser(uri: str) -> bool:
        opened.append(uri)
        return False

    monkeypatch.setattr(webbrowser, "open", no_browser)
    assert harness("open", folder) == 0
    assert opened == [page.as_uri()] and f"no browser can be opened here; the page is {page}" in (
        capsys.readouterr().out
    )
