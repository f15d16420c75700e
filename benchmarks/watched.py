"""A context that tells when its worker has a model. A file of its own: workers import it by name."""

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.config.schema.model import ModelConfig
from harness.engine.stages.context import Context

if TYPE_CHECKING:
    from harness.diffusion.models.model import Model


@dataclass(frozen=True, kw_only=True)
class WatchedContext(Context):
    """Notes in a file when a worker has its model, and in which process."""

    notes: Path

    def model(self, config: ModelConfig) -> "Model":
        """As ever."""
        model = super().model(config)
        with self.notes.open("a") as file:
            file.write(json.dumps({"at": time.time(), "process": os.getpid()}) + "\n")
        return model
