"""An artifact is finished or absent, whatever happens to the process that builds it."""

import errno
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from harness.errors import ArtifactError, WorkspaceError
from harness.store.workspace import BEGUN, Workspace


def build(workspace: Workspace, dataset_id: str, text: str) -> None:
    with workspace.dataset(dataset_id).build(note=text) as folder:
        (folder / "a.txt").write_text(text)


def test_a_finished_stage_holds_its_files_and_a_manifest(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    build(workspace, "d1", "hello")
    artifact = workspace.dataset("d1")
    assert artifact.done
    assert (artifact.path / "a.txt").read_text() == "hello"
    manifest = artifact.manifest()
    assert manifest["facts"] == {"note": "hello"}
    assert manifest["files"]["a.txt"]["bytes"] == 5
    assert manifest["versions"]["torch"]
    artifact.verify()


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    with pytest.raises(ZeroDivisionError), workspace.dataset("d1").build() as folder:
        (folder / "half.txt").write_text("half")
        _ = 1 / 0
    assert not workspace.dataset("d1").done
    assert list(workspace.places()) == [] and not list((tmp_path / BEGUN).iterdir())


def test_a_full_disk_is_a_clear_error_and_leaves_nothing(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    with pytest.raises(WorkspaceError, match=r"No space left.*--workspace"), workspace.dataset("d1").build():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert not list((tmp_path / BEGUN).iterdir())


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
def test_damage_is_found(tmp_path: Path, damage: str) -> None:
    workspace = Workspace(tmp_path)
    build(workspace, "d1", "hello")
    file = workspace.dataset("d1").path / "a.txt"
    match damage:
        case "truncate":
            file.write_text("hell")
        case "flip":
            file.write_text("hellp")
        case "remove":
            file.unlink()
    with pytest.raises(ArtifactError, match=r"a\.txt"):
        workspace.dataset("d1").verify()


def _build_slowly(root: Path, started: str) -> None:
    with Workspace(root, sweep="s").dataset("d1").build() as folder:
        (folder / "half.txt").write_text("half")
        Path(started).touch()
        time.sleep(60)


def test_a_killed_builder_leaves_no_result_and_the_next_driver_clears_up(tmp_path: Path) -> None:
    root, started = tmp_path / "w", tmp_path / "started"
    process = multiprocessing.get_context("spawn").Process(target=_build_slowly, args=(root, str(started)))
    process.start()
    while not started.exists():
        time.sleep(0.01)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    workspace = Workspace(root, sweep="s")
    assert not workspace.dataset("d1").done
    assert [place.kind for place in workspace.places()] == ["begun"]
    with workspace.drive("other"):
        assert [place.kind for place in workspace.places()] == ["begun"], "it may still be at work"
    with workspace.drive("s"):
        assert list(workspace.places()) == []
        build(workspace, "d1", "again")
    assert workspace.dataset("d1").done


def _build_at(root: Path, ready: str, others: int, text: str) -> None:
    workspace = Workspace(root)
    with workspace.dataset("d1").build(note=text) as folder:
        (folder / "a.txt").write_text(text)
        Path(ready, text).touch()
        while len(list(Path(ready).iterdir())) < others:
            time.sleep(0.001)


@pytest.mark.parametrize("there", ["nothing", "a folder without a manifest"])
def test_of_two_builders_at_once_the_first_wins_and_both_end_well(tmp_path: Path, there: str) -> None:
    ready = tmp_path / "ready"
    ready.mkdir()
    if there != "nothing":
        folder = Workspace(tmp_path / "w").dataset("d1").path
        folder.mkdir(parents=True)
        (folder / "half.txt").write_text("half")
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=_build_at, args=(tmp_path / "w", str(ready), 3, f"text {number}"))
        for number in range(3)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    artifact = Workspace(tmp_path / "w").dataset("d1")
    artifact.verify()
    assert artifact.manifest()["facts"]["note"] == (artifact.path / "a.txt").read_text()
    assert sorted(path.name for path in artifact.path.iterdir()) == ["a.txt", "manifest.json"]


def test_a_sweep_has_one_driver(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    with workspace.drive("s"), pytest.raises(WorkspaceError, match="another process"), workspace.drive("s"):
        pass
    with workspace.drive("s"):
        pass


def test_a_workspace_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(WorkspaceError, match=r"--workspace .* cannot be written"):
        Workspace(file / "below").check_writable()


def test_checkpoints_are_in_order_and_only_finished_ones(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    for steps in (1000, 20, 300):
        with workspace.checkpoint("r", steps).build():
            pass
    workspace.checkpoint("r", 50).path.mkdir()
    assert list(workspace.checkpoints("r")) == [20, 300, 1000]


def test_a_workspace_of_the_first_edition_is_refused_in_one_line(tmp_path: Path) -> None:
    sweep = tmp_path / "sweeps" / "quickstart"
    sweep.mkdir(parents=True)
    (sweep / "draws.parquet").write_bytes(b"")
    with pytest.raises(WorkspaceError, match="first edition") as refused, Workspace(tmp_path).drive("other"):
        pass
    assert "\n" not in str(refused.value) and "quickstart" in str(refused.value)
