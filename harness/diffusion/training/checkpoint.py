"""A checkpoint on disk, from which a training run resumes: safetensors and JSON, no pickle."""

from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from harness.errors import ArtifactError
from harness.store.training_record import RECORD, TrainingRecord

TENSORS = "training_state.safetensors"


@dataclass(frozen=True, kw_only=True, eq=False)
class Checkpoint:
    """A training run after `step` optimizer steps. All tensors are copies on the CPU."""

    run_id: str
    step: int
    adapter: dict[str, Tensor]  # diffusers' keys: unet.….lora_A.weight; fp32
    optimizer: dict[
        str, Tensor
    ]  # 0000.exp_avg, 0000.exp_avg_sq, 0000.step, 0001.…, in order of the parameters
    losses: list[float]  # mean loss of each step, the first step first
    ema: dict[str, Tensor]  # the averaged adapter, keys as in `adapter`; empty without training.ema
    validation: (
        dict[int, float] | None
    )  # by step: held-out loss at each checkpoint so far; null without holdout

    def write(self, folder: Path) -> None:
        """Write `training_state.safetensors` and then `training_state.json` into the folder."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {
            f"{part}/{name}": tensor
            for part, tensors in (("adapter", self.adapter), ("optimizer", self.optimizer), ("ema", self.ema))
            for name, tensor in tensors.items()
        }
        save_file(tensors, folder / TENSORS, metadata={"run_id": self.run_id, "step": str(self.step)})
        TrainingRecord(
            run_id=self.run_id, step=self.step, losses=self.losses, validation=self.validation
        ).write(folder)

    @classmethod
    def read(cls, folder: Path) -> "Checkpoint":
        """Read what `write` wrote. Raises ArtifactError if a file is missing, damaged or of another step."""
        try:
            record = TrainingRecord.parse((folder / RECORD).read_bytes())
            with safe_open(folder / TENSORS, framework="pt", device="cpu") as file:
                metadata = file.metadata()
            if metadata != {"run_id": record.run_id, "step": str(record.step)}:
                raise ValueError(f"{TENSORS} and {RECORD} are not of the same step")
            tensors = load_file(folder / TENSORS)
            return cls(
                run_id=record.run_id,
                step=record.step,
                adapter=_below("adapter/", tensors),
                optimizer=_below("optimizer/", tensors),
                losses=record.losses,
                ema=_below("ema/", tensors),
                validation=record.validation,
            )
        except ArtifactError as error:
            raise ArtifactError(f"checkpoint {folder}: {error}; delete it to train again") from error
        except (OSError, ValueError, SafetensorError) as error:
            raise ArtifactError(
                f"checkpoint {folder} is damaged ({type(error).__name__}: {error}); delete it to train again"
            ) from error


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
