"""What to do when an accelerator's memory runs out.

The figures are of full-size SDXL at 1024 px in bf16, counted by `python -m benchmarks.memory` on the meta
device: 6.5 GiB of base, and for each picture of a batch 5.3 GiB of activations, 0.5 with checkpointing.
"""

from harness.models.spec import ModelSpec
from harness.spec.adapter import LowRankAdapter
from harness.spec.expand import TrainingRun


def out_of_memory(run: TrainingRun, *, checkpointing: bool) -> str:
    """The message: only what this run does not do yet."""
    training, ways = run.training, []
    if not checkpointing:
        ways.append(
            "compute.gradient_checkpointing: true (SDXL at 1024 px: 0.5 GiB instead of 5.3 for each picture "
            "of a batch)"
        )
    if training.batch_size > 1:
        passes = training.batch_size * training.gradient_accumulation
        ways.append(
            f"training.batch_size: 1 with training.gradient_accumulation: {passes} instead of "
            f"{training.batch_size} with {training.gradient_accumulation} (the same step)"
        )
    if _is_fp32(run.dataset.model):
        ways.append("model.precision: bf16 (half of the base's 12.9 GiB)")
    if isinstance(run.adapter, LowRankAdapter):
        ways += _smaller_adapters(run.adapter)
    if training.optimizer.kind != "adamw_8bit":
        ways.append("training.optimizer.kind: adamw_8bit")
    return f"run {run.run_id}: the accelerator is out of memory; what saves most first: {'; '.join(ways)}"


def _smaller_adapters(adapter: LowRankAdapter) -> list[str]:
    ways = []
    if adapter.kind == "dora":
        ways.append("adapter.kind: lora (1.2 GiB less)")
    if adapter.targets != ("attention",):
        ways.append("adapter.targets: [attention] (up to 1.4 GiB less)")
    if adapter.rank > 1:
        ways.append(f"a lower adapter.rank than {adapter.rank} (1.1 GiB from 64 to 8)")
    return ways


def _is_fp32(model: ModelSpec) -> bool:
    return model.precision == "fp32"
