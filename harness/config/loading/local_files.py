"""What a sweep names on this machine: paths made absolute, contents hashed.

A relative path is relative to the sweep's file. Contents enter the fingerprint, paths do not.
"""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from harness.config.loading.messages import show
from harness.config.plan.axes import sample_trials
from harness.config.schema.model import ModelConfig
from harness.config.schema.sweep import SweepConfig
from harness.errors import ConfigError

Content = dict[str, Any]
_MODEL: TypeAdapter[ModelConfig] = TypeAdapter(ModelConfig)
_LOCAL_DIR = "local-dir:"


def with_local_files(sweep: SweepConfig, folder: Path) -> SweepConfig:
    """The sweep with absolute paths, and with the digests and counts of what they lead to.

    Raises:
        ConfigError: something is missing or broken, or is not what a digest in the sweep says.
    """
    content = sweep.model_dump(mode="json")
    fill = _Fill(folder)
    for where, section, key, do in _places(content, fill):
        try:
            section[key] = do(section[key])
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from error
    filled = SweepConfig.model_validate(content)
    _check_digests(filled, fill)
    return filled


def _places(content: Content, fill: "_Fill") -> Iterator[tuple[str, Any, Any, Callable[[Any], Any]]]:
    """Every value that may name a file: where it stands, its container and key, and what fills it."""
    for name, do in {"model": fill.model, "recipe": fill.recipe, "training.prior": fill.prior}.items():
        section, _, key = name.rpartition(".")
        yield name, content[section] if section else content, key, do
        axis = content["axes"].get(name, [])
        values = axis["values"] if isinstance(axis, dict) else axis  # conditional, or as a list
        for index in range(len(values)):
            yield f"axes.{name}[{index}]", values, index, do
    for arm in content["arms"]:
        for place, adapter in enumerate(arm["adapters"]):
            where = f"arms.{arm['name']}.adapters[{place}]"
            if adapter["recipe"] is not None:
                yield where, adapter, "recipe", fill.recipe
            if adapter["training"] is not None:
                yield f"{where}.training.prior", adapter["training"], "prior", fill.prior
            if adapter["file"] is not None:
                adapter["digest"] = fill.file_digest(f"{where}.file", adapter["file"], adapter["digest"])
                yield f"{where}.file", adapter, "file", lambda file: str(fill.absolute(file))
    for index, metric in enumerate(content["metrics"]):
        for key in {"encoder", "head"} & metric.keys():
            yield f"metrics[{index}].{key}", metric, key, getattr(fill, key)


class _Fill:
    """Fills raw specifications. Each folder is hashed once, however often the sweep names it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.scanned: dict[Path, tuple[str, int, bool]] = {}
        self.digests: dict[str, str | None] = {}

    def absolute(self, path: str) -> Path:
        return (self.folder / Path(path).expanduser()).resolve()

    def recipe(self, recipe: Content) -> Content:
        if recipe["kind"] != "folder":
            return recipe
        from harness.config.loading.image_folder import scan

        path = self.absolute(recipe["path"])
        if path not in self.scanned:
            self.scanned[path] = scan(path)
        digest, count, captioned = self.scanned[path]
        _expect(recipe.get("digest"), digest, path)
        return {**recipe, "path": str(path), "digest": digest, "count": count, "captioned": captioned}

    def prior(self, prior: Content | None) -> Content | None:
        return None if prior is None else {**prior, "recipe": self.recipe(prior["recipe"])}

    def file_digest(self, where: str, file: str, stated: str | None) -> str:
        path = self.absolute(file)
        if not path.is_file():
            raise ConfigError(f"{where}: {path} is not a file; give a .safetensors file")
        with path.open("rb") as handle:
            digest = hashlib.file_digest(handle, "sha256").hexdigest()
        _expect(stated, digest, path)
        return digest

    def model(self, model: Content) -> Content:
        named = {key: self.source(model[key]) for key in ("source", "refiner", "vae") if model.get(key)}
        model = {**model, **named}
        digest = self.digest(model)
        _expect(model.get("digest"), digest, model["kind"])
        return {**model, "digest": digest}

    def digest(self, model: Content) -> str | None:
        from harness.config.loading.tokens import model_digest

        key = show({**model, "digest": None})
        if key not in self.digests:
            self.digests[key] = model_digest(_MODEL.validate_python({**model, "digest": None}))
        return self.digests[key]

    def source(self, source: str) -> str:
        """A hub id as it is; a folder, if there is one or it can be nothing else, by its absolute path."""
        if source == "random":
            return source
        path = self.absolute(source)
        if path.is_dir():
            return str(path)
        if source.startswith((".", "/", "~")):
            raise ConfigError(f"{path} is not a folder")
        return source

    def encoder(self, encoder: str) -> str:
        if not encoder.startswith(_LOCAL_DIR):
            return encoder
        path = self.absolute(encoder.removeprefix(_LOCAL_DIR))
        if not path.is_dir():
            raise ConfigError(f"{path} is not a folder")
        return f"{_LOCAL_DIR}{path}"

    def head(self, head: str) -> str:
        if head == "emoji":
            return head
        path = self.absolute(head)
        if not path.is_file():
            raise ConfigError(f"{path} is not a file; allowed: emoji, or the path of a head's weights")
        return str(path)


def _expect(stated: str | None, found: str | None, what: object) -> None:
    if stated not in (None, found):
        raise ConfigError(
            f"{what} is not what the sweep's digest {stated} says; remove the digest to use it as it is"
        )


def _check_digests(sweep: SweepConfig, fill: _Fill) -> None:
    """An axis that changes which folder a model is read from would leave it with another folder's digest."""
    varied = [name for name in sweep.axes if name.startswith("model.")]
    if not varied:
        return
    for config in sample_trials(sweep):
        if fill.digest(config.model.model_dump(mode="json")) != config.model.digest:
            raise ConfigError(
                f"axes.{varied[0]} chooses between local folders; give whole models as axes.model"
            )
