"""A dataset that several workers generate together."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from harness.config.plan.plan import Dataset, Plan
from harness.config.schema.model import SdxlModel
from harness.engine.stages import datasets as dataset_stages
from harness.engine.stages.context import Context
from harness.engine.stages.datasets import (
    make_dataset,
    make_parts,
    missing_from_dataset,
    missing_parts,
    parts_of,
)
from harness.errors import DamagedArtifact
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


def context_of(plan: Plan, root: Path, made: Counter[str]) -> Context:
    return Context.of(plan, root, lambda kind, n: made.update({kind: n}))


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]


def whole(ctx: Context, dataset: Dataset) -> Path:
    make_parts(ctx, dataset, missing_parts(ctx.workspace, dataset))
    make_dataset(ctx, dataset)
    return ctx.workspace.dataset(dataset.dataset_id).fetch()


def test_parts_of_several_workers_are_the_dataset_of_one(plan: Plan, tmp_path: Path) -> None:
    dataset, *_ = plan.datasets.values()
    made: Counter[str] = Counter()
    first, second = (context_of(plan, tmp_path / "shared", made) for _ in range(2))
    make_parts(first, dataset, [3])
    assert missing_parts(first.workspace, dataset) == [0, 6]
    assert missing_from_dataset(first.workspace, dataset) == COUNT - 3
    make_parts(second, dataset, [0, 3, 6])
    assert made["dataset_images"] == COUNT, "what is there is not generated again"
    together = whole(second, dataset)
    assert (
        missing_parts(first.workspace, dataset) == [] and missing_from_dataset(first.workspace, dataset) == 0
    )
    assert not (tmp_path / "shared" / "parts" / dataset.dataset_id).exists()
    assert rows(together) == rows(whole(context_of(plan, tmp_path / "alone", made), dataset))
    assert [row["file_name"] for row in rows(together)] == [f"images/{n:06d}.png" for n in range(COUNT)]


def test_a_damaged_part_is_removed_and_made_again(plan: Plan, tmp_path: Path) -> None:
    dataset, *_ = plan.datasets.values()
    made: Counter[str] = Counter()
    ctx = context_of(plan, tmp_path / "w", made)
    make_parts(ctx, dataset, parts_of(dataset))
    image = ctx.workspace.part(dataset.dataset_id, 3).path / "images" / "000004.png"
    image.write_bytes(image.read_bytes()[:-20])
    made.clear()
    with pytest.raises(DamagedArtifact):
        make_dataset(ctx, dataset)
    assert missing_parts(ctx.workspace, dataset) == [3] and made["made again"] == 1
    assert len(rows(whole(ctx, dataset))) == COUNT and made["dataset_images"] == 3
    assert ctx.workspace.dataset(dataset.dataset_id).whole()
