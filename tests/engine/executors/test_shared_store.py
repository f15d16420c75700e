"""One store, several drivers: sweeps that share it, one sweep twice, a driver that is killed, a full disk."""

import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from harness import results
from harness.config.plan.plan import Plan
from harness.config.schema.model import SdxlModel
from harness.engine.accounting.gc import holdings, verify
from harness.engine.pipeline import run_sweep
from harness.engine.stages.context import Context
from harness.results import Results
from harness.store.workspace import BEGUN, Workspace
from tests.engine.executors.carrying import Display, assert_same, assert_same_scores, carry_out
from tests.limits import HANGS
from tests.sweeps.small import small_plan, write_sweep

pytestmark = pytest.mark.slow
ARMS = [{"name": "placebo", "negative": "wrong"}, {"name": "lora", "negative": "wrong", "adapters": [{}]}]
HARNESS = Path(sys.executable).parent / "harness"


def command(sweep: Path, workspace: Path, executor: str, *settings: str) -> list[str]:
    sets = [word for setting in settings for word in ("--set", setting)]
    return [str(HARNESS), "run", str(sweep), "-w", str(workspace), "--executor", executor, *sets]


def wait_for(what: Callable[[], object], process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + HANGS
    while not what():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)


def drive(plan: Plan, root: Path, counts: Path) -> None:
    """What a driver does, in a process of its own; what it made is written down."""
    from harness.engine.executors.local import LocalExecutor

    display = Display()
    ctx = Context.of(plan, root, display.report)
    run = run_sweep(plan, ctx, LocalExecutor(), announce=lambda *_: None, publish=lambda _: True)
    assert not [outcome for outcome in run.outcomes if outcome.failed]
    counts.write_text(json.dumps(display.counts))


def test_two_sweeps_at_once_end_with_equal_artifacts(
    tmp_path: Path, tiny_config: SdxlModel, tiny_clip: str, one_thread: None
) -> None:
    compute = {"batch_size": 1, "checkpoint_every": 2, "pack": "off"}  # on any processor the same bytes
    narrow = small_plan(tmp_path, tiny_config, tiny_clip, name="narrow", compute=compute)
    axes = {"training.steps": [2, 4], "adapter.rank": [2, 3]}
    wide = small_plan(tmp_path, tiny_config, tiny_clip, name="wide", axes=axes, compute=compute)
    root = tmp_path / "w"
    context = multiprocessing.get_context("spawn")
    counts = [tmp_path / name for name in ("narrow", "wide")]
    drivers = [
        context.Process(target=drive, args=(plan, root, file))
        for plan, file in zip((narrow, wide), counts, strict=True)
    ]
    for driver in drivers:
        driver.start()
    for driver in drivers:
        driver.join(timeout=HANGS)
    assert [driver.exitcode for driver in drivers] == [0, 0]
    made = sum((Counter(json.loads(file.read_text())) for file in counts), Counter[str]())
    assert set(narrow.runs) < set(wide.runs)
    # What both need may be made twice, and is kept once.
    assert 4 + 3 <= made["dataset_images"] <= 2 * (4 + 3)
    assert 4 * len(wide.runs) <= made["training_steps"] <= 4 * (len(wide.runs) + len(narrow.runs))
    assert not verify(holdings(Workspace(root)).entries, delete=False)
    alone = carry_out(wide, tmp_path / "alone", "local").results
    assert_same(results.load(root / "sweeps" / "wide"), alone)
    shared = results.load(root / "sweeps" / "narrow")
    common = assert_same_scores(shared, alone)
    assert common >= len(shared.images) - 4, "all but the test images of the selected trial"


def test_a_second_driver_of_the_same_sweep_is_refused(
    tmp_path: Path, tiny_config: SdxlModel, tiny_clip: str
) -> None:
    run = command(write_sweep(tmp_path / "small.yaml", tiny_config, tiny_clip), tmp_path / "w", "local")
    first = subprocess.Popen(run, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True)
    try:
        wait_for((tmp_path / "w/sweeps/small/plan.json").is_file, first)
        second = subprocess.run(run, capture_output=True, text=True, timeout=HANGS)
        assert first.poll() is None, "the first was over, so this shows nothing"
    finally:
        first.kill()
        first.wait()
    assert second.returncode == 2
    said = " ".join(second.stderr.split())
    assert "sweep 'small'" in said and "is being run by another process" in said
    assert "Traceback" not in second.stderr and second.stderr.count("error:") == 1


def test_a_driver_killed_under_ray_leaves_nobody_and_is_started_again(
    tmp_path: Path, long_sweep: Path, undisturbed: Results
) -> None:
    root = tmp_path / "w"
    run = command(long_sweep, root, "ray", "compute.max_concurrent=2")
    first = subprocess.Popen(run, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True)
    wait_for(lambda: len(list(root.glob("adapters/*/steps-*/manifest.json"))) >= 2, first)
    orphans = psutil.Process(first.pid).children(recursive=True)
    assert any("raylet" in process.name() for process in orphans)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    second = subprocess.run(run, capture_output=True, text=True, timeout=HANGS)
    assert second.returncode == 0, second.stderr
    # Ray's agents take a minute longer; they hold nothing.
    _, left = psutil.wait_procs(orphans, timeout=0)
    assert not [process for process in left if "Agent" not in process.name()]
    found = results.load(root / "sweeps" / "small")
    assert_same(found, undisturbed)
    assert [(row["what"], row["count"]) for row in found.sweep["events"]] == [("driver lost", 1)]
    manifests = [json.loads(file.read_text()) for file in root.glob("adapters/*/steps-*/manifest.json")]
    assert max(manifest["facts"]["from_step"] for manifest in manifests) > 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system that holds a part of the sweep."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=500k", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("not allowed to mount a file system")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


def assert_told(run: "subprocess.CompletedProcess[str]", why: str, store: Path) -> None:
    """In one clear line; and nothing is left that takes up the room that there is none of."""
    assert run.returncode in (1, 2) and "Traceback" not in run.stderr
    assert why in " ".join(run.stderr.split())
    begun = [path for path in store.rglob(".*") if path.is_file() and path.stat().st_size]
    assert not begun + list(store.glob(f"sweeps/*/{BEGUN}/*"))


def test_a_full_disk_is_told_and_with_room_the_sweep_goes_on(
    small_disk: Path, tmp_path: Path, tiny_config: SdxlModel, tiny_clip: str
) -> None:
    sweep = write_sweep(tmp_path / "small.yaml", tiny_config, tiny_clip, arms=ARMS)
    run = command(sweep, small_disk / "w", "ray")
    full = subprocess.run(run, capture_output=True, text=True, timeout=HANGS)
    assert_told(full, "No space left on device", small_disk / "w")
    subprocess.run(["mount", "-o", "remount,size=100m", small_disk], check=True)
    again = subprocess.run(run, capture_output=True, text=True, timeout=HANGS)
    assert again.returncode == 0, again.stderr
    assert_complete(results.load(small_disk / "w/sweeps/small"))


def test_a_file_that_may_not_grow_is_told(tmp_path: Path, tiny_config: SdxlModel, tiny_clip: str) -> None:
    run = command(write_sweep(tmp_path / "small.yaml", tiny_config, tiny_clip), tmp_path / "w", "local")

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    limited = subprocess.run(run, capture_output=True, text=True, timeout=HANGS, preexec_fn=limit)
    assert_told(limited, "File too large", tmp_path / "w")
    (reason,) = results.load(tmp_path / "w/sweeps/small").trials["reason"].unique()
    assert "adapters" in reason and "make room, or choose another --workspace" in reason


def assert_complete(found: Results) -> None:
    assert (found.trials["status"] == "completed").all()
    assert found.scores["value"].notna().all()
