"""The store of real sweeps: finished, damaged, made shorter, interrupted."""

from collections import Counter
from pathlib import Path

import pandas as pd
import pytest

from harness.config.plan.plan import Plan
from harness.config.schema.model import SdxlModel
from harness.engine.accounting.estimate import Estimate, estimated
from harness.engine.accounting.gc import collect_garbage, holdings, verify
from harness.engine.accounting.inventory import inventory
from harness.engine.executors.local import LocalExecutor
from harness.engine.pipeline import SweepRun, run_sweep
from harness.engine.queue import Queue
from harness.engine.stages.context import Context
from harness.engine.tasks import PartsTask
from harness.store.workspace import Workspace
from tests.engine.stages_by_hand import make, own_run
from tests.sweeps.small import small_plan


@pytest.fixture
def plan(tmp_path: Path, tiny_config: SdxlModel, tiny_clip: str) -> Plan:
    return small_plan(tmp_path, tiny_config, tiny_clip)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "w")


def carry_out(plan: Plan, workspace: Workspace) -> tuple[SweepRun, Counter[str]]:
    made: Counter[str] = Counter()
    ctx = Context.of(plan, workspace.address, lambda kind, count: made.update({str(kind): count}))
    run = run_sweep(plan, ctx, LocalExecutor(), announce=lambda *_: None, publish=lambda _: True)
    assert not [outcome.reason for outcome in run.outcomes if outcome.failed]
    return run, made


def counted(plan: Plan, workspace: Workspace) -> Estimate:
    return estimated(plan, workspace, inventory(plan, workspace))


def test_a_real_sweep_is_kept_repaired_timed_and_let_go(
    tmp_path: Path, plan: Plan, workspace: Workspace, tiny_config: SdxlModel, tiny_clip: str
) -> None:
    first, _ = carry_out(plan, workspace)
    assert collect_garbage(workspace, delete=False) == []
    assert {entry.needed_by for entry in holdings(workspace).entries} == {("small",)}
    assert verify(holdings(workspace).entries, delete=False) == []

    assert counted(plan, workspace).seconds == 0 and counted(plan, workspace).complete
    longer = small_plan(tmp_path, tiny_config, tiny_clip, axes={"training.steps": [2, 4, 6]})
    found = counted(longer, workspace)
    assert found.complete and found.seconds is not None and found.seconds > 0
    assert found.shares["training steps"].timings == 2  # two runs, each trained in one go
    assert not found.shares["adapter images"].scaled

    adapter = workspace.root / first.results.trials["adapter_path"][0]
    image = workspace.root / first.results.images["path"][0]
    for file in (adapter / "pytorch_lora_weights.safetensors", image):
        content = file.read_bytes()
        file.write_bytes(content[:50] + bytes([content[50] ^ 1]) + content[51:])
    damaged = {finding.entry.name for finding in verify(holdings(workspace).entries, delete=True)}
    assert damaged == {workspace.relative(adapter), workspace.relative(image.parent)}
    again, made = carry_out(plan, workspace)
    assert made["training_steps"] == 2 and made["images"] == 1
    columns = ["image_id", "latent_hash"]
    pd.testing.assert_frame_equal(again.results.images[columns], first.results.images[columns])
    pd.testing.assert_frame_equal(again.results.scores, first.results.scores, rtol=0.1, atol=0.1)  # rounding
    assert verify(holdings(workspace).entries, delete=False) == []

    shorter = small_plan(tmp_path, tiny_config, tiny_clip, axes={"training.steps": [4]})
    carry_out(shorter, workspace)
    let_go = {finding.entry.kind for finding in collect_garbage(workspace, delete=True)}
    assert let_go == {"checkpoint", "images", "scores"}
    assert list(workspace.checkpoints(own_run(plan).run_id)) == [4]
    _, made = carry_out(shorter, workspace)
    assert not made


class Interrupted:
    """An executor that makes a dataset, runs into a collection of garbage meanwhile, and is stopped."""

    def workers(self, ctx: Context) -> int:
        return 1

    def carry_out(self, queue: Queue, ctx: Context) -> None:
        task = queue.next()
        while not isinstance(task, PartsTask):
            task = queue.next()
        make(ctx.workspace.dataset(task.dataset.dataset_id))
        make(ctx.workspace.dataset("x1"))
        collect_garbage(ctx.workspace, delete=True)
        raise KeyboardInterrupt


def test_a_sweep_keeps_what_it_makes_before_it_has_tables(workspace: Workspace, plan: Plan) -> None:
    ctx = Context.of(plan, workspace.address, lambda *_: None)
    with pytest.raises(KeyboardInterrupt):
        run_sweep(plan, ctx, Interrupted(), announce=lambda *_: None, publish=lambda _: True)
    (kept,) = holdings(workspace).entries
    assert kept.kind == "dataset" and kept.needed_by == ("small",)
    assert not (workspace.sweep("small") / "sweep.json").exists()
