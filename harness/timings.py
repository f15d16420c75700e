"""How long past work of the store took, by sorts of work: what `estimate.py` reckons with."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from harness.errors import StageError
from harness.inventory import picture_passes, step_passes
from harness.places import Place, PlaceKind
from harness.stage import is_manifest
from harness.workspace import Workspace

TIMED: frozenset[PlaceKind] = frozenset({"dataset", "snapshot", "pictures"})


@dataclass(frozen=True)
class Sort:
    """A sort of work. Equal ones take as long per unit; those of one `family` as long per pass."""

    family: str
    settings: str
    unit_passes: float


@dataclass(frozen=True, kw_only=True)
class Timing:
    """How long a finished stage took to make."""

    sort: Sort
    units: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Rate:
    """Seconds per unit, and what it is from; `scaled` where that is of other settings."""

    seconds: float
    timings: tuple[Timing, ...]
    scaled: bool


def past_timings(workspace: Workspace) -> list[Timing]:
    """How long finished stages took to make. Those that do not say it are left out.

    A training's snapshots count from the start of the same call, so the last of them stands for all.
    """
    found: dict[str, tuple[int, Timing]] = {}
    places = [place for place in workspace.places() if place.kind in TIMED and place.stage.done]
    workspace.fetch((place.stage for place in places), is_manifest)
    for place in places:
        try:
            manifest = place.stage.manifest()
            timing, call = _timing(place, manifest), _call(place, manifest)
        except (StageError, KeyError, TypeError):  # damaged, or of another version: nothing is known
            continue
        if timing.units and (call not in found or found[call][0] < timing.units):
            found[call] = timing.units, timing
    return [timing for _, timing in found.values()]


def _call(place: Place, manifest: Mapping[str, Any]) -> str:
    """What was made in one go."""
    path = place.stage.path
    return f"{path.parent.name} {manifest['facts']['from_step'] if place.kind == 'snapshot' else path.name}"


def _timing(place: Place, manifest: Mapping[str, Any]) -> Timing:
    facts = manifest["facts"]
    pictures = sum(name.endswith(".png") for name in manifest["files"])
    match place.kind:
        case "snapshot":
            sort = training_sort(facts["run"]["model"], facts["run"]["adapter"], facts["run"]["training"])
            return Timing(sort=sort, units=facts["step"] - facts["from_step"], seconds=facts["train_seconds"])
        case "dataset":
            sort = dataset_sort(facts["model"], facts["recipe"])
            return Timing(sort=sort, units=pictures, seconds=facts["draw_seconds"])
        case _:
            sort = drawing_sort(facts["model"], facts["draw"])
            return Timing(sort=sort, units=pictures, seconds=facts["made"]["draw_seconds"])


def training_sort(model: Any, adapter: Any, training: Mapping[str, Any]) -> Sort:
    """Of training steps, from the specifications as JSON."""
    prior = training["prior"] is not None
    passes = step_passes(training["batch_size"], training["gradient_accumulation"], prior=prior)
    return Sort(
        _text("training", model),
        _text(adapter, training["optimizer"]["kind"], training["ema"] is not None),
        passes,
    )


def drawing_sort(model: Any, draw: Mapping[str, Any]) -> Sort:
    """Of pictures. `draw` is as `picture_stages.draw_facts` gives it."""
    family = _text("drawing", model, draw["scheduler"], draw["size"])
    settings = _text(draw["steps"], draw["refiner_start"], draw["adapters"])
    return Sort(family, settings, picture_passes(draw["steps"]))


def dataset_sort(model: Any, recipe: Mapping[str, Any]) -> Sort:
    """Of training pictures, from the specifications as JSON."""
    if recipe["kind"] == "folder":
        return Sort(_text("reading"), "", 0)
    plain = {"scheduler": None, "size": None, "adapters": 0}
    return drawing_sort(model, {**plain, "steps": recipe["steps"], "refiner_start": recipe["refiner_start"]})


def _text(*parts: Any) -> str:
    return json.dumps(parts, sort_keys=True)


class Rates:
    """Seconds per unit of each sort of work: all seconds over all units, since a sum is what is asked for."""

    def __init__(self, timings: Iterable[Timing]) -> None:
        self.by_sort: dict[Sort, list[Timing]] = defaultdict(list)
        self.by_family: dict[str, list[Timing]] = defaultdict(list)
        for timing in timings:
            self.by_sort[timing.sort].append(timing)
            self.by_family[timing.sort.family].append(timing)

    def of(self, sort: Sort) -> Rate | None:
        """Of work just like it, else of the like; null where there is none."""
        if alike := self.by_sort.get(sort):
            seconds = sum(timing.seconds for timing in alike) / sum(timing.units for timing in alike)
            return Rate(seconds=seconds, timings=tuple(alike), scaled=False)
        if family := self.by_family.get(sort.family):
            passes = sum(timing.units * timing.sort.unit_passes for timing in family)
            per_pass = sum(timing.seconds for timing in family) / passes
            return Rate(seconds=per_pass * sort.unit_passes, timings=tuple(family), scaled=True)
        return None
