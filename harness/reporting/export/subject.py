"""The exported trial: found in the tables, with its public names, and without paths of this machine."""

import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any, Literal

from harness.config.schema.adapter import TextualInversion
from harness.config.schema.model import EmojiModel, ModelConfig
from harness.config.schema.recipe import RecipeConfig
from harness.config.schema.sweep import Trained, TrialConfig
from harness.config.weights.checkpoint import has_sdxl_blocks
from harness.errors import ArtifactError, ConfigError
from harness.store.artifact import is_adapter

if TYPE_CHECKING:
    from harness.results import Results
    from harness.store.workspace import Workspace


WORDS = frozenset({"keywords", "prompt", "prompts", "text"})  # people's words, which may begin with a slash
PREFIX = "local-dir:"  # open_clip's mark of a folder


def portable(value: Any, *, name: str = "") -> Any:
    """JSON with every absolute path cut down to its last part. `name` is the key the value stands under."""
    match value:
        case dict():
            return {key: portable(inner, name=key) for key, inner in value.items()}
        case list() | tuple():
            return [portable(inner, name=name) for inner in value]
        case str() if name not in WORDS:
            return _last_part(value)
        case _:
            return value


def _last_part(text: str) -> str:
    path = text.removeprefix(PREFIX)
    for kind in (PurePosixPath, PureWindowsPath):
        if kind(path).is_absolute():
            return kind(path).name or path
    return text


def is_local(source: str) -> bool:
    """True for a folder of this machine, false for a hub id."""
    return _last_part(source) != source


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One trial of a finished sweep, and the folder of its adapter."""

    results: "Results"
    row: dict[str, Any]  # of the trials table
    config: TrialConfig
    checkpoint: Path

    @property
    def trained(self) -> Trained:
        """Its recipe, adapter and training."""
        return self.config.trained

    @property
    def trial_id(self) -> str:
        """The trial's id in all tables."""
        return str(self.row["trial_id"])

    @property
    def index(self) -> int:
        """The trial's number in its sweep."""
        return int(self.row["index"])

    @property
    def name(self) -> str:
        """What its files are called, and what A1111 calls it in a prompt."""
        return f"{_safe(str(self.results.sweep['name']))}_{self.index}"

    @property
    def word(self) -> str:
        """What the prompt must hold for the adapter to be called: DreamBooth's prompt, or the learnt word."""
        _, adapter, training = self.trained
        return adapter.word if isinstance(adapter, TextualInversion) else training.prompt

    @cached_property
    def base(self) -> str | None:
        """The hub id of the model it was trained on; None if it has none."""
        model = self.config.model
        if isinstance(model, EmojiModel) or model.source == "random" or is_local(model.source):
            return None
        return model.source

    @property
    def base_text(self) -> str:
        """The model it was trained on, in words."""
        model = self.config.model
        if isinstance(model, EmojiModel):
            return "emoji (64 px, embedded in lora-sweep-harness)"
        return str(portable(model.source)) + (f" (revision {model.revision})" if model.revision else "")

    @property
    def blocks(self) -> Literal["sgm", "diffusers"]:
        """How kohya's layout names the UNet's blocks: as SDXL's own code where the UNet has its shape."""
        return "sgm" if _has_sdxl_blocks(self.config.model) else "diffusers"

    @property
    def recipe_text(self) -> str:
        """The recipe's own name, or its kind."""
        return recipe_text(self.trained.recipe)

    @cached_property
    def varied(self) -> dict[str, Any]:
        """Values of the sweep's axes in this trial."""
        return {axis: portable(self.row[axis]) for axis in self.results.sweep["axes"] if axis in self.row}


def recipe_text(recipe: RecipeConfig) -> str:
    """The recipe's own name, or its kind."""
    return recipe.name or recipe.kind


def find(results: "Results", workspace: "Workspace", trial: int | Literal["best"]) -> Subject:
    """A trial with its adapter.

    Raises ConfigError if there is no such trial or it has no adapter, ArtifactError if the adapter is gone.
    """
    trials = results.trials
    name = str(results.sweep["name"])
    chosen = trials[
        trials["selected"].fillna(False).astype(bool) if trial == "best" else trials["index"] == trial
    ]
    if trial == "best" and chosen.empty:
        raise ConfigError(
            f"sweep {name} has no best trial: none has a difference on dev; give a trial's number"
        )
    if chosen.empty:
        allowed = ", ".join(str(index) for index in sorted(trials["index"]))
        raise ConfigError(f"trial {trial} is not in sweep {name}; allowed: best, {allowed}")
    row = {str(key): value for key, value in chosen.iloc[0].to_dict().items()}
    if row["run_id"] is None:
        raise ConfigError(
            f"the adapter of trial {row['index']} of sweep {name} is a file that was given; there is nothing "
            "to export"
        )
    if not isinstance(row["adapter_path"], str):
        raise ConfigError(
            f"trial {row['index']} of sweep {name} has no adapter ({row['reason']}); run it first"
        )
    artifact = workspace.artifact(row["adapter_path"])
    if not artifact.done:
        raise ArtifactError(f"{artifact.place} is missing; `harness run` makes it again")
    checkpoint = artifact.fetch(is_adapter)
    for fault in artifact.faults(is_adapter):
        raise ArtifactError(
            f"{fault}; `harness store verify --delete-damaged` removes it, `harness run` makes it again"
        )
    try:
        config = TrialConfig.model_validate(json.loads(row["config"]))
    except ValueError as error:
        raise ArtifactError(
            f"trial {row['index']} of sweep {name} was written by another version of the harness and "
            "cannot be "
            "read; `harness run` writes the tables anew"
        ) from error
    return Subject(results=results, row=row, config=config, checkpoint=checkpoint)


def _safe(name: str) -> str:
    return re.sub(r"[^\w-]+", "_", name)


def _has_sdxl_blocks(model: ModelConfig) -> bool:
    if isinstance(model, EmojiModel):
        return False
    folder = model.config or model.source
    return not is_local(folder) or has_sdxl_blocks(Path(folder)) is not False
