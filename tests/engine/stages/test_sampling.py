"""Images of several arms in one batch, and those that are there already."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from harness.config.plan.plan import Cell, ResolvedArm
from harness.config.schema.model import SdxlModel
from harness.engine.stages.context import Context
from harness.engine.stages.sampling import IMAGES, image_ids, make_images, missing_images, read_parquet
from harness.engine.tasks import ImagesTask, Wish, missing_tasks
from harness.engine.worker import run_task
from tests.sweeps.small import small_plan


def test_draws_in_one_batch_are_the_draws_alone(
    tmp_path: Path, tiny_config: SdxlModel, tiny_clip: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trial's images, its sham's and a control's, each row with its own adapters on its own branch."""
    from harness.diffusion.models.sdxl import Sdxl

    names = [
        {"name": "placebo", "negative": "wrong"},
        {"name": "negative", "negative": "wrong", "adapters": [{"branch": "negative"}]},
        {"name": "both", "negative": "wrong", "adapters": [{"scale": 0.5}]},
    ]
    plan = small_plan(tmp_path, tiny_config, tiny_clip, arms=names)
    arms = [plan.arms[arm_id] for arm_id in plan.trials[0].arms.values()]
    one_each = [(arm, plan.cells(arm, "dev")[:1]) for arm in arms]
    rows: list[int] = []
    draw_rows = Sdxl.generate

    def noted(self: Sdxl, given: Any, settings: Any) -> Any:
        rows.append(len(given))
        return draw_rows(self, given, settings)

    def images(root: str, wanted: list[list[tuple[ResolvedArm, tuple[Cell, ...]]]]) -> list[np.ndarray]:
        large = plan.sweep.compute.model_copy(update={"batch_size": 8})
        ctx = replace(Context.of(plan, tmp_path / root, lambda *_: None), compute=large)
        for task in missing_tasks(Wish(plan=plan, workers=lambda: 1), ctx.workspace):
            if not isinstance(task, ImagesTask):
                run_task(task, ctx)
        for together in wanted:
            make_images(ctx, together)
        ctx.workspace.invalidate()
        files = [
            chunk.path / read_parquet(chunk, IMAGES)["path"].item()
            for (chunk,) in (ctx.workspace.image_chunks(arm.arm_id) for arm in arms)
        ]
        return [np.asarray(Image.open(file), dtype=int) for file in files]

    alone = images("alone", [[one] for one in one_each])
    monkeypatch.setattr(Sdxl, "generate", noted)
    together = images("together", [one_each])
    assert rows[-1] == len(arms)
    for ours, theirs in zip(together, alone, strict=True):
        assert np.abs(ours - theirs).max() <= 1  # the products of so small a model have a kernel of their own
    assert all(np.abs(one - alone[0]).max() > 10 for one in alone[1:])


def test_images_that_are_there_are_not_generated_again(
    tmp_path: Path, tiny_config: SdxlModel, tiny_clip: str
) -> None:
    plan = small_plan(tmp_path, tiny_config, tiny_clip, seeds=list(range(6)))
    (arm, *_), made = plan.control_arms, Counter[str]()
    cells = plan.cells(arm, "dev")
    ctx = Context.of(plan, tmp_path / "w", lambda kind, n: made.update({kind: n}))
    make_images(ctx, [(arm, cells[:5])])
    assert missing_images(ctx.workspace, arm, cells) == cells[5:]
    make_images(ctx, [(arm, cells)])
    assert made["images"] == len(cells)
    chunks = ctx.workspace.image_chunks(arm.arm_id)
    table = chunks[0].path / IMAGES
    lost = image_ids(chunks[0])
    table.write_bytes(table.read_bytes()[:-8])
    assert [cell.image_id for cell in missing_images(ctx.workspace, arm, cells)] == lost
    make_images(ctx, [(arm, cells)])
    assert made["images"] == len(cells) + len(lost) and made["made again"] == 1
    found = [image_id for chunk in ctx.workspace.image_chunks(arm.arm_id) for image_id in image_ids(chunk)]
    assert sorted(found) == sorted(cell.image_id for cell in cells)
