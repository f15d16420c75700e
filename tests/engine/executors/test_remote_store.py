"""A sweep whose workspace is a bucket of a real S3 server, through every command that touches the store."""

import json
from pathlib import Path

import pytest
from PIL import Image

from harness import results
from harness.config.schema.model import SdxlModel
from harness.store.workspace import Workspace
from tests.cli.command import harness
from tests.engine.executors.carrying import assert_same, carry_out
from tests.store import server
from tests.sweeps.small import small_plan, write_sweep

pytestmark = pytest.mark.slow


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    """Run the command; its exit code, and all that it has said."""
    capsys.readouterr()
    code = harness(*arguments)
    said = capsys.readouterr()
    return code, said.out + said.err


def test_a_sweep_in_a_bucket_equals_one_in_a_folder_and_another_machine_goes_on_with_it(
    s3: str,
    s3_endpoint: str,
    tmp_path: Path,
    tiny_config: SdxlModel,
    tiny_clip: str,
    one_thread: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    sweep = write_sweep(tmp_path / "small.yaml", tiny_config, tiny_clip)
    code, said = run(capsys, "trial", sweep, "1", "-w", s3)
    assert code == 0 and "wrong_lora" in said, said
    here = carry_out(small_plan(tmp_path, tiny_config, tiny_clip), tmp_path / "w", "local").results
    with server.proxy(s3_endpoint, server.now_and_then(seed=1, share=0.05)) as in_the_way:
        monkeypatch.setenv("AWS_ENDPOINT_URL", in_the_way.endpoint)
        code, said = run(capsys, "run", sweep, "-w", s3, "--executor", "local")
    assert code == 0, said
    assert {"busy", "reset", "cut", "slow"} <= set(in_the_way.done)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_endpoint)
    folder = f"{s3}/sweeps/small"
    assert f"page    {folder}/report.html" in said
    assert_same(results.load(folder), here)
    bucket = s3.removeprefix("s3://")
    made = server.objects(s3_endpoint, bucket)

    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "another machine"))
    code, said = run(capsys, "run", sweep, "-w", s3, "--executor", "local")
    assert code == 0 and "Nothing to train, generate or score" in said
    assert_same(results.load(folder), here)
    again = server.objects(s3_endpoint, bucket)
    assert [name for name in again if ".lock" not in name] == [name for name in made if ".lock" not in name]

    code, said = run(capsys, "check", sweep, "-w", s3, "--json")
    assert code == 0 and json.loads(said)["training steps"]["missing"] == 0

    server.client(s3_endpoint).rm_file(f"{bucket}/sweeps/small/report.html")
    code, said = run(capsys, "report", folder)
    assert code == 0 and f"{folder}/report.html" in "".join(said.split("\n"))
    page = server.client(s3_endpoint).cat_file(f"{bucket}/sweeps/small/report.html").decode()
    assert page.count("data:image/webp") > 4 or page.count("data:image/png") > 4
    assert f"--workspace {s3}" in page

    code, said = run(capsys, "publish", folder)
    assert code == 0 and "published to W&B (offline)" in said, said
    mirrored = list(Workspace(s3).fetch_sweep("small").glob("wandb/offline-run-*"))
    assert len(mirrored) > 1 + len(here.trials), "one of each trial, of each control and of the sweep"

    code, said = run(capsys, "export", folder, "0", "--layout", "kohya")
    assert code == 0, said
    assert "sweeps/small/export/0/README.md" in server.objects(s3_endpoint, bucket)

    image = here.images["path"][0]
    monkeypatch.chdir(tmp_path)
    code, said = run(capsys, "redraw", f"{s3}/{image}")
    assert code == 0 and "the same pixels" in "".join(said.split("\n")), said
    with Image.open(f"{Path(image).stem}-again.png") as drawn:
        assert drawn.mode == "RGB"


def test_the_store_of_a_bucket_is_listed_verified_and_cleared(
    s3: str,
    s3_endpoint: str,
    tmp_path: Path,
    tiny_config: SdxlModel,
    tiny_clip: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    plan = small_plan(tmp_path, tiny_config, tiny_clip, axes={})
    first = carry_out(plan, s3, "local")
    code, said = run(capsys, "store", "ls", "-w", s3, "--json")
    assert code == 0
    artifacts = json.loads(said)["artifacts"]
    assert {artifact["kind"] for artifact in artifacts} >= {"dataset", "checkpoint", "images", "scores"}
    assert all(
        artifact["needed_by"] == ["small"] or artifact["kind"] == "checkpoint" for artifact in artifacts
    )
    code, said = run(capsys, "store", "show", artifacts[0]["name"], "-w", s3)
    assert code == 0 and "finished_at" in said

    bucket = s3.removeprefix("s3://")
    server.client(s3_endpoint).pipe_file(f"{bucket}/{first.results.images['path'][0]}", b"damaged")
    code, said = run(capsys, "store", "verify", "-w", s3)
    assert code == 1 and "does not match its manifest" in said
    code, said = run(capsys, "store", "verify", "-w", s3, "--delete-damaged")
    assert code == 0 and "1 damaged" in said
    again = carry_out(plan, s3, "local")
    assert_same(again.results, first.results)

    server.client(s3_endpoint).rm(f"{bucket}/sweeps/small", recursive=True)
    code, said = run(capsys, "store", "gc", "-w", s3, "--delete")
    assert code == 0, said
    left = server.objects(s3_endpoint, bucket)
    known = (".locks/plans-all/", "sweeps/.looks")  # what gc itself released last, and the ledger of looks
    assert [name for name in left if not name.startswith(known)] == []
    assert not list(Workspace(s3).places())
