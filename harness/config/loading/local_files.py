"""What a sweep names on this machine: paths made absolute, contents hashed.

A relative path is relative to the sweep's file. Contents enter the fingerprint, paths do not.
"""

import hashlib
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from harness.config.loading.files import user_path
from harness.config.plan.axes import PointsAndTrials
from harness.config.schema.adapter import GivenAdapter, TrialAdapter
from harness.config.schema.evaluation import ArmAdapter, ArmConfig
from harness.config.schema.metric import (
    CommandMetric,
    ImageStatsMetric,
    LegibilityMetric,
    MetricConfig,
    PreferenceMetric,
)
from harness.config.schema.model import CHECKPOINT, ModelConfig, SdxlModel
from harness.config.schema.recipe import FolderRecipe, RecipeConfig
from harness.config.schema.search import Axis, values_of, with_values
from harness.config.schema.sweep import SweepConfig
from harness.config.schema.training import PriorConfig
from harness.config.weights.checkpoint import is_file
from harness.config.weights.layout import PEFT_CONFIG, PEFT_FILE, adapter_path
from harness.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from harness.config.loading.image_folder import Scan

_SECTIONS: dict[str, TypeAdapter[Any]] = {
    "model": TypeAdapter(ModelConfig),
    "recipe": TypeAdapter(RecipeConfig),
    "adapter": TypeAdapter(TrialAdapter),
    "training.prior": TypeAdapter(PriorConfig | None),
}
_LOCAL_DIR = "local-dir:"
PUBLISHED = {  # how to get the weights of a metric
    "pick_score": "hf download yuvalkirstain/PickScore_v1 model.safetensors",
    "hps_v2": "hf download xswu/HPSv2 HPS_v2.1_compressed.pt",
}
Section = TypeVar("Section")


class LocalFiles:
    """The files that a sweep in `folder` names. Each is hashed once, however often the sweep names it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.scanned: dict[Path, Scan] = {}
        self.digests: dict[str, str | None] = {}

    def filled(self, sweep: SweepConfig) -> SweepConfig:
        """The sweep with absolute paths, and with the digests and counts of what they lead to.

        Nothing is validated again: what is filled in has the types that the specifications ask for.

        Raises:
            ConfigError: something is missing or broken, or is not what a digest in the sweep says.
        """
        axes, sections = dict(sweep.axes), dict[str, Any]()
        fills: dict[str, Callable[[Any], Any]] = {
            "model": self._model,
            "recipe": lambda recipe: recipe and self._recipe(recipe),
            "adapter": self._given,
            "training.prior": self._prior,
        }
        for name, fill in fills.items():
            sections[name] = _at(name, fill, _section(sweep, name))
            if name in axes:
                axes[name] = _filled_axis(name, axes[name], fill)
        prior, training = sections.pop("training.prior"), sweep.training
        return sweep.model_copy(
            update={
                **sections,
                "training": training and training.model_copy(update={"prior": prior}),
                "axes": axes,
                "arms": tuple(map(self._arm, sweep.arms)),
                "metrics": tuple(self._metric(place, metric) for place, metric in enumerate(sweep.metrics)),
            }
        )

    def check_digests(self, sweep: SweepConfig, trials: PointsAndTrials) -> Iterator[str]:
        """An axis that changes a model's folder or file would leave the model with another one's digest."""
        varied = [name for name in sweep.axes if name.startswith("model.")]
        for _, config in trials if varied else ():
            try:
                is_right = self._digest(config.model) == config.model.digest
            except ConfigError:  # its path is relative to the sweep, and nothing is there
                is_right = False
            if not is_right:
                yield f"axes.{varied[0]} chooses between local folders or files; give whole axes.model"
                return

    def _absolute(self, path: str | Path) -> Path:
        return user_path(self.folder, path).resolve()

    def _given(self, adapter: TrialAdapter) -> TrialAdapter:
        """The trial's own adapter, where it is a file, under a name for tables."""
        if not isinstance(adapter, GivenAdapter):
            return adapter
        if adapter.hub is not None:
            name = "-".join(filter(None, (adapter.hub.id.partition("/")[2], adapter.hub.weight_name)))
            return adapter.model_copy(update={"name": adapter.name or shortened(name)})
        assert adapter.file is not None
        file = _adapter_file("adapter.file", self._absolute(adapter.file))
        digest = _file_digest(file, adapter.digest)
        named = adapter.name or shortened(file.stem)
        return adapter.model_copy(update={"file": file, "digest": digest, "name": named})

    def _recipe(self, recipe: RecipeConfig) -> RecipeConfig:
        if not isinstance(recipe, FolderRecipe):
            return recipe
        from harness.config.loading.image_folder import check_repeats, scan

        path = self._absolute(recipe.path)
        if path not in self.scanned:
            self.scanned[path] = scan(path)
        found = self.scanned[path]
        _expect(recipe.digest, found.digest, path)
        check_repeats(recipe, found.names)
        filled = {"path": path, "digest": found.digest, "count": found.images}
        return recipe.model_copy(update={**filled, "captioned": found.captioned, "left_out": found.left_out})

    def _prior(self, prior: PriorConfig | None) -> PriorConfig | None:
        return None if prior is None else prior.model_copy(update={"recipe": self._recipe(prior.recipe)})

    def _arm(self, arm: ArmConfig) -> ArmConfig:
        wheres = [f"arms.{arm.name}.adapters[{place}]" for place in range(len(arm.adapters))]
        return arm.model_copy(update={"adapters": tuple(map(self._adapter, wheres, arm.adapters))})

    def _adapter(self, where: str, adapter: ArmAdapter) -> ArmAdapter:
        found: dict[str, Any] = {}
        if adapter.recipe is not None:
            found["recipe"] = _at(where, self._recipe, adapter.recipe)
        if adapter.training is not None:
            prior = _at(f"{where}.training.prior", self._prior, adapter.training.prior)
            found["training"] = adapter.training.model_copy(update={"prior": prior})
        if adapter.file is not None:
            found["file"] = _adapter_file(f"{where}.file", self._absolute(adapter.file))
            found["digest"] = _file_digest(found["file"], adapter.digest)
        return adapter.model_copy(update=found)

    def _metric(self, place: int, metric: MetricConfig) -> MetricConfig:
        if isinstance(metric, ImageStatsMetric | LegibilityMetric):
            return metric
        if isinstance(metric, CommandMetric):
            return self._command(f"metrics[{place}]", metric)
        if isinstance(metric, PreferenceMetric):
            path = self._absolute(metric.weights)
            path = _weights(f"metrics[{place}].weights", path, get=PUBLISHED[metric.kind])
            digest = _file_digest(path, metric.digest)
            return metric.model_copy(update={"weights": path, "digest": digest})
        found = _at(f"metrics[{place}].encoder", self._encoder, metric.encoder)
        return metric.model_copy(update={"encoder": found})

    def _command(self, where: str, metric: CommandMetric) -> CommandMetric:
        """A word that is a file beside the sweep counts by its content; the program must be there."""
        folder = self.folder.resolve()
        program = metric.command[0]
        if not (folder / program).is_file() and shutil.which(program) is None:
            raise ConfigError(f"{where}.command: no program {program!r} is here, nor such a file in {folder}")
        digest = hashlib.sha256()
        files = [word for word in metric.command if (folder / word).is_file()]
        for word in files:
            digest.update(f"{word} {_file_digest(folder / word, None)}\n".encode())
        found = digest.hexdigest()[:16] if files else None
        _expect(metric.digest, found, f"{where}.command")
        return metric.model_copy(update={"folder": folder, "digest": found})

    def _model(self, model: ModelConfig) -> ModelConfig:
        if isinstance(model, SdxlModel):
            named = {name: getattr(model, name) for name in ("source", "config", "refiner", "vae")}
            found = {name: self._source(name, source) for name, source in named.items() if source}
            model = model.model_copy(update=found)
        digest = self._digest(model)
        _expect(model.digest, digest, model.kind)
        return model.model_copy(update={"digest": digest})

    def _digest(self, model: ModelConfig) -> str | None:
        from harness.config.loading.tokens import model_digest

        key = model.model_dump_json(exclude={"digest"})
        if key not in self.digests:
            self.digests[key] = model_digest(model)
        return self.digests[key]

    def _source(self, name: str, source: str) -> str:
        """A hub id as it is; a folder or file, where there is one or it must be one, by its absolute path."""
        if source == "random":
            return source
        path = self._absolute(source)
        can_be_a_file = name != "config" and is_file(source)
        if path.is_dir() or (can_be_a_file and path.is_file()):
            return str(path)
        if path.is_file() or can_be_a_file or name == "config" or source.startswith((".", "/", "~")):
            or_file = "" if name == "config" else f" or a {CHECKPOINT} file"
            raise ConfigError(f"{name}: {path} is not a folder{or_file}")
        return source

    def _encoder(self, encoder: str) -> str:
        if not encoder.startswith(_LOCAL_DIR):
            return encoder
        path = self._absolute(encoder.removeprefix(_LOCAL_DIR))
        if not path.is_dir():
            raise ConfigError(f"{path} is not a folder")
        return f"{_LOCAL_DIR}{path}"


def _section(sweep: SweepConfig, name: str) -> Any:
    """A section by its dotted name; None where it, or what it stands in, is not given."""
    found: Any = sweep
    for step in name.split("."):
        found = found and getattr(found, step)
    return found


LABEL = 40  # characters of a name in tables


def shortened(name: str) -> str:
    """A file's name as a label: its beginning and its end, where checkpoints have their numbers."""
    return name if len(name) <= LABEL else f"{name[:18]}…{name[-20:]}"


def with_adapter_files(raw: dict[str, Any], folder: Path) -> dict[str, Any]:
    """`axes.adapter.file` as adapters of their own: a folder and a pattern stand for the files in them.

    Files are in order of the number that their name ends with, those without one last, as kohya has its end.
    """
    axes = raw.get("axes")
    if not isinstance(axes, dict) or "adapter.file" not in axes:
        return raw
    given = axes["adapter.file"]
    patterns = [given] if isinstance(given, str) else given
    if not isinstance(patterns, list) or not patterns or not all(isinstance(p, str) for p in patterns):
        raise ConfigError("axes.adapter.file: must be a file, a folder or a pattern, or a list of them")
    base = raw.get("adapter") or {"kind": "file"}
    if "adapter" in axes or not isinstance(base, dict) or base.keys() != {"kind"} or base["kind"] != "file":
        raise ConfigError("axes.adapter.file: all of adapter is {kind: file} then; remove the rest of it")
    files = [file for pattern in patterns for file in _matching(pattern, folder)]
    stems = [file.stem for file in files]
    adapters = [
        {
            "kind": "file",
            "file": str(file),
            "name": shortened(stem if stems.count(stem) == 1 else f"{file.parent.name}/{stem}"),
        }
        for file, stem in zip(files, stems, strict=True)
    ]
    others = {name: axis for name, axis in axes.items() if name != "adapter.file"}
    rest = {name: value for name, value in raw.items() if name != "adapter"}
    return {**rest, "axes": {"adapter": adapters, **others}}


def _matching(pattern: str, folder: Path) -> list[Path]:
    path = (folder / Path(pattern).expanduser()).absolute()
    if path.is_dir():
        found = list(path.glob("*.safetensors"))
    elif any(sign in pattern for sign in "*?["):
        anchor = Path(path.anchor)
        found = [file for file in anchor.glob(str(path.relative_to(anchor))) if file.is_file()]
    else:
        return [path]
    if not found:
        raise ConfigError(f"axes.adapter.file: {pattern}: no .safetensors file is there")
    return sorted(found, key=_by_number)


def _by_number(file: Path) -> tuple[str, float, str]:
    stem = file.stem.rstrip("0123456789")
    digits = file.stem.removeprefix(stem)
    return (stem.rstrip("-_"), float(digits) if digits else math.inf, file.name)


def _at(where: str, fill: Callable[[Section], Section], section: Section) -> Section:
    """The section filled in; its fault says where it stands."""
    try:
        return fill(section)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def _filled_axis(name: str, axis: Axis, fill: Callable[[Any], Any]) -> Axis:
    values = []
    for index, value in enumerate(values_of(axis)):
        try:
            section = _SECTIONS[name].validate_python(value)
        except ValidationError:  # told of the trial that it makes
            values.append(value)
        else:
            found = _at(f"axes.{name}[{index}]", fill, section)
            values.append(_SECTIONS[name].dump_python(found, mode="json", exclude_unset=True))
    return with_values(axis, values)


def _adapter_file(where: str, path: Path) -> Path:
    """The file itself, where a folder is given that one was saved in."""
    try:
        path = adapter_path(path)
    except ModelError as error:
        raise ConfigError(f"{where}: {error}") from error
    if not path.is_file():
        raise ConfigError(f"{where}: {path} is not a file; give a .safetensors file")
    return path


def _file_digest(path: Path, stated: str | None) -> str:
    """The hash of all that decides what the adapter does: of PEFT's folder its settings too."""
    settings = path.with_name(PEFT_CONFIG)
    parts = [path, settings] if path.name == PEFT_FILE and settings.is_file() else [path]
    digest = hashlib.sha256()
    for part in parts:
        with part.open("rb") as handle:
            while block := handle.read(2**20):
                digest.update(block)
    _expect(stated, digest.hexdigest(), path)
    return digest.hexdigest()


def _weights(where: str, path: Path, *, get: str) -> Path:
    """The file itself. Raises ConfigError with how to get it where it is not there."""
    if not path.is_file():
        raise ConfigError(f"{where}: {path} is not a file; {get}")
    return path


def _expect(stated: str | None, found: str | None, what: object) -> None:
    if stated not in (None, found):
        raise ConfigError(
            f"{what} is not what the sweep's digest {stated} says; remove the digest to use it as it is"
        )
