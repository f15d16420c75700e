"""What a store's files say leads nowhere outside it, and one flipped bit of a JSON file is found."""

import json
import stat
import uuid
from pathlib import Path

import pytest

from harness.errors import ArtifactError
from harness.store.artifact import DIGEST, MANIFEST, UMASK, Artifact, read_json, write_json
from harness.store.objects import Bucket
from harness.store.workspace import Workspace

OUTSIDE = ["/tmp/{}", "../{}", "a/../../{}", "a//{}", "..\\{}", ""]


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_buckets_manifest_writes_nothing_outside_its_folder(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    url = f"memory://{uuid.uuid4().hex}"
    name = name.replace("/tmp", str(tmp_path)).format("victim")
    write_json(tmp_path / MANIFEST, {"files": {name: {"sha256": "0" * 64, "bytes": 1}}, "facts": {}})
    Bucket(url).write(f"datasets/d1/{MANIFEST}", (tmp_path / MANIFEST).read_bytes())
    (tmp_path / MANIFEST).unlink()
    artifact = Workspace(url).dataset("d1")
    with pytest.raises(ArtifactError, match="names a file outside its folder"):
        artifact.fetch()
    assert {path.name for path in tmp_path.iterdir()} <= {"cache"}


def test_a_buckets_names_lead_to_no_folder_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    url = f"memory://{uuid.uuid4().hex}"
    (tmp_path / "victim").mkdir()
    Bucket(url).write(f"images/../../victim/{MANIFEST}", b"{}")
    workspace = Workspace(url)
    assert not list(workspace.places()) and not workspace.image_chunks("..")
    assert (tmp_path / "victim").is_dir()


@pytest.mark.parametrize("name", ["/etc/hostname", "../victim.png", "images/../../victim.png"])
def test_a_tables_path_leads_nowhere_outside(name: str, tmp_path: Path) -> None:
    (tmp_path / "victim.png").write_bytes(b"")
    with pytest.raises(ArtifactError, match="is no path below the workspace"):
        Workspace(tmp_path / "w").file(name)


def test_every_flipped_bit_of_a_manifest_is_found(tmp_path: Path) -> None:
    artifact = Artifact(tmp_path / "a", tmp_path / "begun")
    with artifact.build(one_colour=["0123"], train_seconds=1.5) as folder:
        (folder / "a.txt").write_text("a")
    file = artifact.path / MANIFEST
    content, was = file.read_bytes(), artifact.manifest()
    found = 0
    for bit in range(8 * len(content)):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        file.write_bytes(damaged)
        try:
            told = artifact.manifest()
        except ArtifactError:
            found += 1
        else:
            told.pop(next((name for name in told if name not in was), ""), None)
            assert told == was, "another key for the digest is the only thing that may pass"
    assert found > 7.9 * len(content)


def test_a_file_with_another_digest(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"value": 1})
    assert read_json(tmp_path / "a.json") == {"value": 1}
    content = json.loads((tmp_path / "a.json").read_text())
    (tmp_path / "a.json").write_text(json.dumps({"value": 2, DIGEST: content[DIGEST]}))
    with pytest.raises(ValueError, match="digest"):
        read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="too deep"):
        read_json(tmp_path / "a.json")


def test_a_workspace_is_shared_as_its_users_umask_says(tmp_path: Path) -> None:
    """safetensors writes files for their owner alone."""
    artifact = Artifact(tmp_path / "a", tmp_path / "begun")
    with artifact.build() as folder:
        (folder / "inner").mkdir(mode=0o700)
        (folder / "inner" / "a.safetensors").touch(mode=0o600)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in artifact.path.rglob("*")}
    assert modes["inner"] == 0o777 & ~UMASK and modes["a.safetensors"] == 0o666 & ~UMASK
