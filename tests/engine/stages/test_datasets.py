"""A dataset that several workers draw together."""

import json
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from harness.config.plan.plan import Plan
from harness.config.schema.model import SdxlModel
from harness.engine.stages import datasets as dataset_stages
from harness.engine.stages.context import Context
from harness.engine.stages.datasets import ensure_dataset, missing_from_dataset
from harness.store.workspace import Workspace
from tests.limits import HANGS
from tests.sweeps.small import small_plan

COUNT = 7


@pytest.fixture
def plan(tmp_path: Path, tiny_config: SdxlModel, tiny_clip: str, monkeypatch: pytest.MonkeyPatch) -> Plan:
    monkeypatch.setattr(dataset_stages, "PART", 3)
    recipe = {
        "kind": "plain",
        "prompts": ["a fox", "a moon"],
        "count": COUNT,
        "steps": 2,
        "refiner_start": None,
    }
    return small_plan(
        tmp_path,
        tiny_config,
        tiny_clip,
        recipe=recipe,
        arms=[{"name": "placebo"}, {"name": "a", "adapters": [{}]}],
    )


def bench_of(plan: Plan, root: Path, made: Counter[str]) -> Context:
    return Context(plan=plan, workspace=Workspace(root), report=lambda kind, n: made.update({kind: n}))


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + HANGS
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_part_that_another_draws_is_left_to_it_and_drawn_where_it_dies(plan: Plan, tmp_path: Path) -> None:
    (dataset_id, dataset), *_ = plan.datasets.items()
    made: Counter[str] = Counter()
    ctx, other = bench_of(plan, tmp_path / "shared", made), Workspace(tmp_path / "shared")
    parts = [ctx.workspace.part(dataset_id, first) for first in (0, 3, 6)]
    with ThreadPoolExecutor() as pool:
        with other.claim("part", parts[1].path.name):
            folder = pool.submit(ensure_dataset, ctx, dataset_id)
            wait_until(lambda: folder.done() or (parts[0].done and parts[2].done))
            assert not folder.done(), folder.exception()
            assert not parts[1].done and missing_from_dataset(other, dataset) == 3
            time.sleep(0.2)
            assert not folder.done() and not other.dataset(dataset_id).done
        together = folder.result(timeout=HANGS)
    assert made["dataset_images"] == COUNT and missing_from_dataset(other, dataset) == 0
    assert not (tmp_path / "shared" / "parts" / dataset_id).exists()
    assert rows(together) == rows(ensure_dataset(bench_of(plan, tmp_path / "alone", made), dataset_id))
    assert [row["file_name"] for row in rows(together)] == [f"images/{n:06d}.png" for n in range(COUNT)]


def test_a_part_that_is_there_is_not_drawn_again_unless_it_is_damaged(plan: Plan, tmp_path: Path) -> None:
    dataset_id, *_ = plan.datasets
    made: Counter[str] = Counter()
    ctx = bench_of(plan, tmp_path / "w", made)
    with ThreadPoolExecutor() as pool:
        with ctx.workspace.claim("dataset", dataset_id):
            folder = pool.submit(ensure_dataset, ctx, dataset_id)  # all parts, then it waits for the whole
            parts = [ctx.workspace.part(dataset_id, first) for first in (0, 3, 6)]
            wait_until(lambda: all(part.done for part in parts))
            image = parts[1].path / "images" / "000004.png"
            image.write_bytes(image.read_bytes()[:-20])
            made.clear()
            assert not folder.done()
        assert len(rows(folder.result(timeout=HANGS))) == COUNT
    assert made["dataset_images"] == 3
    assert ctx.workspace.dataset(dataset_id).whole()
