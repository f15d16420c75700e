"""Images of several draws in one batch, and of one draw by several workers."""

import shutil
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from harness.config.plan.plan import Cell, ResolvedArm
from harness.config.schema.model import SdxlModel
from harness.engine.stages.context import Context
from harness.engine.stages.sampling import (
    IMAGES,
    ensure_all_images,
    ensure_images,
    missing_images,
    read_parquet,
    share_of,
)
from harness.store.workspace import Workspace
from tests.limits import HANGS
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
        sweep = plan.sweep.model_copy(update={"compute": large})
        ctx = Context(
            plan=replace(plan, sweep=sweep), workspace=Workspace(tmp_path / root), report=lambda *_: None
        )
        for together in wanted:
            ensure_all_images(ctx, together)
        ctx.workspace.look_again()
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


def test_a_share_that_another_draws_is_left_to_it_and_waited_for(
    tmp_path: Path, tiny_config: SdxlModel, tiny_clip: str
) -> None:
    """One share another worker finishes, another one it leaves when it dies."""
    plan = small_plan(tmp_path, tiny_config, tiny_clip, seeds=list(range(6)))
    (arm, *_), made = plan.control_arms, Counter[str]()
    cells = plan.cells(arm, "dev")
    shares = sorted({share_of(cell) for cell in cells})
    theirs = [cell for cell in cells if share_of(cell) == shares[0]]

    def bench_of(root: str) -> Context:
        return Context(
            plan=plan, workspace=Workspace(tmp_path / root), report=lambda kind, n: made.update({kind: n})
        )

    ensure_images(bench_of("other"), arm, tuple(theirs))
    made.clear()
    ctx, other = bench_of("shared"), Workspace(tmp_path / "shared")
    with ThreadPoolExecutor() as pool:
        with other.claim_share(arm.arm_id, shares[0]), other.claim_share(arm.arm_id, shares[1]):
            drawing = pool.submit(ensure_images, ctx, arm, cells)
            held = [cell for cell in cells if share_of(cell) in shares[:2]]
            deadline = time.monotonic() + HANGS
            while len(missing_images(ctx, arm, cells)) > len(held):
                assert time.monotonic() < deadline
                time.sleep(0.02)
            assert not drawing.done() and missing_images(ctx, arm, cells) == tuple(held)
            source = tmp_path / "other" / "images" / arm.arm_id
            shutil.copytree(source, tmp_path / "shared" / "images" / arm.arm_id, dirs_exist_ok=True)
        drawing.result(timeout=HANGS)
    assert made["images"] == len(cells) - len(theirs)
    drawn = [read_parquet(chunk, IMAGES) for chunk in other.image_chunks(arm.arm_id)]
    assert sorted(pd.concat(drawn)["image_id"]) == sorted(cell.image_id for cell in cells)
