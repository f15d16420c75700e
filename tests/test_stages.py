"""Pictures of several draws in one batch."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from harness.bench import Bench
from harness.generation.plan import Chunk
from harness.models.spec import SdxlModel
from harness.spec.expand import Cell, Draw
from harness.stages import IMAGES, ensure_all_pictures, filled_batches, read_parquet
from harness.workspace import Workspace
from tests.sweeps import small_plan


def cell_of(place: int) -> Cell:
    return Cell(image_id=str(place), draw_id="d", prompt_id="p", prompt="a", tags=(), split="dev", seed=place)


@pytest.mark.parametrize(
    ("sizes", "batches"),
    [
        ([4, 4], [[4], [4]]),
        ([2, 2, 2], [[2, 2], [2]]),
        ([4, 1, 1, 3], [[4], [1, 1], [3]]),
        ([], []),
    ],
)
def test_chunks_share_a_batch_as_long_as_there_is_room(sizes: list[int], batches: list[list[int]]) -> None:
    draw: Any = object()
    chunks = [
        Chunk(chunk_id=str(place), cells=tuple(cell_of(p) for p in range(size)))
        for place, size in enumerate(sizes)
    ]
    found = filled_batches([(draw, chunk) for chunk in chunks], 4)
    assert [[len(chunk.cells) for _, chunk in batch] for batch in found] == batches
    assert [chunk for batch in found for _, chunk in batch] == chunks


def test_draws_in_one_batch_are_the_draws_alone(
    tmp_path: Path, tiny_spec: SdxlModel, tiny_clip: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trial's pictures, its sham's and a control's, each row with its own adapters on its own branch."""
    from harness.models.sdxl import Sdxl

    arms = [
        {"name": "placebo", "negative": "wrong"},
        {"name": "negative", "negative": "wrong", "adapters": [{"branch": "negative"}]},
        {"name": "both", "negative": "wrong", "adapters": [{"scale": 0.5}]},
    ]
    plan = small_plan(tmp_path, tiny_spec, tiny_clip, arms=arms)
    draws = [plan.draws[draw_id] for draw_id in plan.trials[0].draws.values()]
    one_each = [(draw, plan.cells(draw, "dev")[:1]) for draw in draws]
    rows: list[int] = []
    draw_rows = Sdxl.draw

    def noted(self: Sdxl, given: Any, settings: Any) -> Any:
        rows.append(len(given))
        return draw_rows(self, given, settings)

    def pictures(root: str, wanted: list[list[tuple[Draw, tuple[Cell, ...]]]]) -> list[np.ndarray]:
        large = plan.sweep.compute.model_copy(update={"batch_size": 8})
        sweep = plan.sweep.model_copy(update={"compute": large})
        bench = Bench(
            plan=replace(plan, sweep=sweep), workspace=Workspace(tmp_path / root), report=lambda *_: None
        )
        for together in wanted:
            ensure_all_pictures(bench, together)
        bench.workspace.look_again()
        files = [
            chunk.path / read_parquet(chunk, IMAGES)["path"].item()
            for (chunk,) in (bench.workspace.image_chunks(draw.draw_id) for draw in draws)
        ]
        return [np.asarray(Image.open(file), dtype=int) for file in files]

    alone = pictures("alone", [[one] for one in one_each])
    monkeypatch.setattr(Sdxl, "draw", noted)
    together = pictures("together", [one_each])
    assert rows[-1] == len(draws)
    for ours, theirs in zip(together, alone, strict=True):
        assert np.abs(ours - theirs).max() <= 1  # the products of so small a model have a kernel of their own
    assert all(np.abs(one - alone[0]).max() > 10 for one in alone[1:])
