"""The losses of a training run, as a checkpoint stores them: JSON, read without torch."""

import json
from dataclasses import dataclass
from pathlib import Path

from harness.errors import ArtifactError

RECORD = "training_state.json"  # in a checkpoint


@dataclass(frozen=True, kw_only=True)
class TrainingRecord:
    """What a training run has measured after `step` optimizer steps."""

    run_id: str
    step: int
    losses: list[float]  # mean loss of each step, the first step first
    validation: dict[int, float] | None  # by step: held-out loss at each checkpoint so far; None: no holdout

    @property
    def final_loss(self) -> float:
        """Mean of the last tenth of the steps: one step's loss depends mostly on its random timestep."""
        tail = self.losses[-max(1, len(self.losses) // 10) :]
        return sum(tail) / len(tail)

    def held_out_loss(self, step: int) -> float | None:
        """At fixed noise; None without held-out images, and at a checkpoint between two checkpoints."""
        return (self.validation or {}).get(step)

    def write(self, folder: Path) -> None:
        """Write `training_state.json` into the folder."""
        validation = None if self.validation is None else list(self.validation.items())
        content = {"run_id": self.run_id, "step": self.step, "losses": self.losses, "validation": validation}
        (folder / RECORD).write_text(json.dumps(content, allow_nan=False), encoding="utf-8")

    @classmethod
    def parse(cls, content: bytes) -> "TrainingRecord":
        """Read what `write` wrote. Raises ArtifactError if it is anything else."""
        try:
            known = json.loads(content)
            validation = known["validation"]
            record = cls(
                run_id=known["run_id"],
                step=known["step"],
                losses=[float(loss) for loss in known["losses"]],
                validation=None if validation is None else {int(step): loss for step, loss in validation},
            )
            if len(record.losses) != record.step:
                raise ValueError(f"{len(record.losses)} losses for {record.step} steps")
        except (ValueError, KeyError, TypeError) as error:
            raise ArtifactError(f"{RECORD} is damaged ({type(error).__name__}: {error})") from error
        return record
