"""A workspace in a bucket keeps the promises of one in a folder; on a real S3 server."""

import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from harness.errors import ArtifactError, WorkspaceError
from harness.store.remote import TOPS
from harness.store.workspace import FOLDERS, Workspace
from tests.store import server


def build(workspace: Workspace, dataset_id: str, text: str) -> None:
    with workspace.dataset(dataset_id).build(note=text) as folder:
        (folder / "a.txt").write_text(text)
        (folder / "below").mkdir()
        (folder / "below" / "b.txt").write_text(text)


def on_another_machine(workspace: Workspace, monkeypatch: pytest.MonkeyPatch, name: str) -> Workspace:
    monkeypatch.setenv("HARNESS_CACHE", str(workspace.root.parents[1] / name))
    return Workspace(workspace.address)


def test_what_one_machine_builds_another_reads(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    here = Workspace(s3)
    assert not here.dataset("d1").done and not here.exists()
    build(here, "d1", "hello")
    there = on_another_machine(here, monkeypatch, "there")
    artifact = there.dataset("d1")
    assert here.dataset("d1").done and artifact.done and there.exists()
    assert not there.root.exists()
    assert artifact.manifest()["facts"] == {"note": "hello"}
    assert not (artifact.path / "a.txt").exists()
    assert artifact.read("a.txt") == b"hello"
    assert not (artifact.path / "below").exists()
    assert (artifact.fetch() / "below" / "b.txt").read_text() == "hello"
    assert set(artifact.contents()) == {"a.txt", "below/b.txt", "manifest.json"}
    artifact.verify()


def test_an_error_leaves_nothing_here_or_there(s3: str, s3_endpoint: str) -> None:
    workspace = Workspace(s3)
    with pytest.raises(ZeroDivisionError), workspace.dataset("d1").build() as folder:
        (folder / "half.txt").write_text("half")
        _ = 1 / 0
    assert not workspace.dataset("d1").done
    assert server.objects(s3_endpoint, s3.removeprefix("s3://")) == []


def test_without_a_manifest_it_is_nobodys_result_and_goes_when_it_is_built(s3: str, s3_endpoint: str) -> None:
    workspace = Workspace(s3)
    build(workspace, "d1", "hello")
    fs = server.client(s3_endpoint)
    bucket = s3.removeprefix("s3://")
    fs.rm_file(f"{bucket}/datasets/d1/manifest.json")
    fs.pipe_file(f"{bucket}/datasets/d1/old.txt", b"of a killed builder")
    again = Workspace(s3)
    assert not again.dataset("d1").done
    assert [again.relative(place.artifact.path) for place in again.places()] == ["datasets/d1"]
    build(again, "d1", "again")
    assert "old.txt" not in again.dataset("d1").contents()
    assert again.dataset("d1").read("a.txt") == b"again"


@pytest.mark.parametrize("damage", ["flip", "remove"])
def test_damage_in_the_bucket_is_found(
    s3: str, s3_endpoint: str, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = Workspace(s3)
    build(here, "d1", "hello")
    file = f"{s3.removeprefix('s3://')}/datasets/d1/a.txt"
    match damage:
        case "flip":
            server.client(s3_endpoint).pipe_file(file, b"hellp")
        case "remove":
            server.client(s3_endpoint).rm_file(file)
    assert here.dataset("d1").whole()  # as it was built here
    assert [fault for fault in here.dataset("d1").damage() if "a.txt" in fault]
    there = on_another_machine(here, monkeypatch, "there")
    with pytest.raises(ArtifactError, match=r"s3://.*a\.txt"):
        there.dataset("d1").fetch()
    assert not there.dataset("d1").whole()
    there.dataset("d1").remove()
    assert not there.dataset("d1").done and not Workspace(s3).dataset("d1").done
    build(there, "d1", "hello")
    assert there.dataset("d1").whole()


def test_damage_on_this_machine_is_fetched_again(s3: str) -> None:
    workspace = Workspace(s3)
    build(workspace, "d1", "hello")
    (workspace.dataset("d1").path / "a.txt").write_text("hellp")
    assert workspace.dataset("d1").whole()
    assert workspace.dataset("d1").read("a.txt") == b"hello"


def test_what_was_made_anew_elsewhere_replaces_what_is_here(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    here = Workspace(s3)
    build(here, "d1", "old")
    there = on_another_machine(here, monkeypatch, "there")
    there.dataset("d1").remove()
    assert not Workspace(s3).dataset("d1").done
    build(there, "d1", "new")
    monkeypatch.setenv("HARNESS_CACHE", str(here.root.parent))
    assert Workspace(s3).dataset("d1").read("a.txt") == b"new"


def test_a_listing_sees_what_is_there_and_what_is_made_meanwhile(s3: str) -> None:
    workspace = Workspace(s3)
    for steps in (1000, 20, 300):
        with workspace.checkpoint("r", steps).build():
            pass
    with workspace.images("d", "c1").build() as folder:
        (folder / "x.png").write_bytes(b"1")
    other = Workspace(s3)
    with other.listing():
        assert list(other.checkpoints("r")) == [20, 300, 1000]
        assert [chunk.path.name for chunk in other.image_chunks("d")] == ["c1"]
        assert not other.dataset("d1").done
        build(other, "d1", "x")
        assert other.dataset("d1").done
        other.checkpoint("r", 300).remove()
        assert list(other.checkpoints("r")) == [20, 1000]
        assert [place.kind for place in other.places()] == ["dataset", "checkpoint", "checkpoint", "images"]
    with workspace.checkpoint("r", 40).build():
        pass
    other.invalidate()
    with other.listing():
        assert list(other.checkpoints("r")) == [20, 40, 1000]
    assert list(other.checkpoints("r")) == [20, 40, 1000]


def test_a_sweeps_folder_is_uploaded_the_last_file_last(s3: str, s3_endpoint: str) -> None:
    workspace = Workspace(s3)
    folder = workspace.sweep("small")
    folder.mkdir(parents=True)
    for name in ("trials.parquet", "sweep.json", ".hidden"):
        (folder / name).write_text(name)
    workspace.upload_sweep("small", ["trials.parquet", "sweep.json"])
    (folder / "trials.parquet").unlink()
    with pytest.raises(FileNotFoundError):
        workspace.upload_sweep("small", ["trials.parquet", "sweep.json"])
    assert server.objects(s3_endpoint, f"{s3.removeprefix('s3://')}/sweeps") == ["small/trials.parquet"]
    shutil.rmtree(workspace.root)
    there, here = Workspace.of_sweep(f"{s3}/sweeps/small/")
    assert [file.name for file in here.iterdir()] == ["trials.parquet"]
    assert there.address == s3 and there.sweep_names() == ["small"]
    with pytest.raises(WorkspaceError, match="no such folder"):
        Workspace.of_sweep(f"{s3}/sweeps/smal")


def _build_slowly(url: str, started: str) -> None:
    with Workspace(url, sweep="s").dataset("d1").build() as folder:
        (folder / "half.txt").write_text("half")
        Path(started).touch()
        time.sleep(60)


def test_a_killed_builder_leaves_no_result(s3: str, tmp_path: Path) -> None:
    started = tmp_path / "started"
    process = multiprocessing.get_context("spawn").Process(target=_build_slowly, args=(s3, str(started)))
    process.start()
    while not started.exists():
        time.sleep(0.01)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    workspace = Workspace(s3, sweep="s")
    with workspace.drive("s"):
        assert not workspace.dataset("d1").done
        assert list(workspace.places()) == []
        build(workspace, "d1", "again")
    assert workspace.dataset("d1").done


def _build_at(url: str, cache: str, ready: str, text: str) -> None:
    os.environ["HARNESS_CACHE"] = cache  # as on a machine of its own
    with Workspace(url).dataset("d1").build(note=text) as folder:
        for name in ("a.txt", "b.txt"):
            (folder / name).write_text(text)
        Path(ready, text).touch()
        while len(list(Path(ready).iterdir())) < 3:
            time.sleep(0.001)


def test_of_builders_at_once_the_first_wins_and_their_files_are_not_mixed(
    s3: str, s3_endpoint: str, tmp_path: Path
) -> None:
    ready = tmp_path / "ready"
    ready.mkdir()
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=_build_at, args=(s3, str(tmp_path / str(n)), str(ready), f"text {n}"))
        for n in range(3)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    artifact = Workspace(s3).dataset("d1")
    assert list(artifact.damage()) == []
    texts = {artifact.read(name).decode() for name in ("a.txt", "b.txt")}
    assert texts == {artifact.manifest()["facts"]["note"]}
    assert not [name for name in server.objects(s3_endpoint, s3.removeprefix("s3://")) if "locks" in name]


def test_a_sweep_has_one_driver(s3: str) -> None:
    workspace = Workspace(s3)
    with (
        workspace.drive("s"),
        pytest.raises(WorkspaceError, match=r"s3://.* is being run by another process"),
        workspace.drive("s"),
    ):
        pass
    with workspace.drive("s"):
        pass


def test_a_listing_covers_every_place_of_artifacts() -> None:
    assert set(TOPS) == {top for top, _ in FOLDERS.values()}
