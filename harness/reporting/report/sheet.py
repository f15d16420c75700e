"""The grid as a picture without a browser: `harness grid`. Its dimensions are those of the page's grid."""

import difflib
import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from harness.errors import ConfigError
from harness.reporting.report.data import axis_values
from harness.reporting.report.images import arm_images, differences
from harness.reporting.report.layout import param_name
from harness.reporting.report.thumbnails import CRISP
from harness.results.contrast import known, number, text
from harness.results.format import axis_value, metric_name, plain, signed, tone
from harness.results.study import Study
from harness.store.workspace import Workspace

GAP, LINE, LABEL = 10, 18, 150  # pixels: between cells, of a line of text, of the rows' labels
PAPER, INK, FAINT = (255, 255, 255), (27, 29, 33), (95, 102, 114)
TONES = {"up": (0, 87, 60), "down": (143, 50, 0), "": INK}
MOST = 2_000  # cells
Coordinate = dict[str, Any]  # a value per dimension


@dataclass(frozen=True, kw_only=True)
class View:
    """What a grid shows. `at` holds the dimensions that are neither columns, rows nor panels."""

    x: str | None = None
    y: str | None = None
    panels: str | None = None
    at: Mapping[str, str] = field(default_factory=dict)
    metric: str | None = None
    control: str | None = None
    size: int = 192  # pixels of an image's longer side


@dataclass(frozen=True, kw_only=True)
class Dimension:
    """One thing that a grid may be laid out by: its values, and each as people call it."""

    key: str
    values: tuple[Any, ...]
    labels: tuple[str, ...]

    def find(self, given: str) -> Any:
        """The value that is meant. Raises ConfigError, which names some, where there is none."""
        for value, label in zip(self.values, self.labels, strict=True):
            if given in (str(value), label):
                return value
        raise ConfigError(_unknown(f"{self.key} {given!r}", given, self.labels))


@dataclass(frozen=True, kw_only=True)
class Cell:
    """An image with its score and its difference from the control's, or why there is none."""

    path: str | None
    image_id: str | None = None
    value: float | None = None
    difference: float | None = None
    reason: str = "no image"


class Sheet:
    """A grid of a sweep's images, looked up by coordinates."""

    def __init__(self, study: Study, view: View) -> None:
        """Raises ConfigError for a dimension, value, metric or control that the sweep does not have."""
        if study.results.images.empty:
            raise ConfigError("this sweep has no images yet, so there is no grid of them")
        self.study = study
        self.dimensions = {dimension.key: dimension for dimension in _dimensions(study)}
        self.metric = _one_of("--score", view.metric or study.primary, study.metrics)
        self.control = _one_of("--control", view.control or study.control, study.controls)
        axes = [key for key in self.dimensions if key in study.axes]
        axes.sort(key=lambda key: key != "training.steps")
        defaults = [*axes, "trial", "arm", "prompt", "seed"]
        used = [key for key in (view.x, view.y, view.panels) if key]
        free = [key for key in defaults if key in self.dimensions and key not in used]
        self.x = self._known(view.x) or free.pop(0)
        self.y = self._known(view.y) or (free.pop(0) if view.x is None else None)
        self.panels = self._known(view.panels)
        self.by_trial = "trial" in (self.x, self.y, self.panels) or "trial" in view.at or not axes
        self.home = self._home(view.at)
        images = study.results.images.reset_index(drop=True)
        self._images = {
            (arm_id, prompt, int(seed)): row
            for row, (arm_id, prompt, seed) in enumerate(
                zip(images["arm_id"], images["prompt"], images["seed"], strict=True)
            )
        }
        arms = study.results.arms
        self._arms = dict(zip(zip(arms["trial_id"], arms["arm"], strict=True), arms["arm_id"], strict=True))
        scores = study.results.scores
        of_metric = scores[scores["metric"] == self.metric]
        self._scores = dict(zip(of_metric["image_id"], of_metric["value"], strict=True))
        self._table = images

    def _known(self, key: str | None) -> str | None:
        if key is None or key in self.dimensions:
            return key
        raise ConfigError(_unknown(f"dimension {key!r}", key, list(self.dimensions)))

    def _home(self, given: Mapping[str, str]) -> Coordinate:
        """A value of every dimension: as given, else the selected trial's and its median dev pair's."""
        study, home = self.study, {key: d.values[0] for key, d in self.dimensions.items()}
        trials = study.results.trials.set_index("trial_id")
        if study.selected is not None:
            home |= {axis: known(trials.loc[study.selected, axis]) for axis in study.axes if axis in home}
            home |= {"trial": study.selected} if "trial" in home else {}
            gains = differences(study, arm_images(study, study.selected), "dev")
            if len(gains):
                prompt_id, seed = gains.index[(len(gains) - 1) // 2]
                images = study.results.images
                home["prompt"] = images.loc[images["prompt_id"] == prompt_id, "prompt"].iloc[0]
                home["seed"] = int(seed)
        own = study.arm_config(study.arm)
        home["arm"] = own["family"] or own["name"]
        home |= {f"arm.{key}": value for key, value in (own["params"] or {}).items()}
        for key, value in given.items():
            self._known(key)
            home[key] = self.dimensions[key].find(value)
        return home

    def coordinates(self, key: str | None) -> list[tuple[str, Coordinate]]:
        """Label and value along a dimension; prompts of the other split than the one shown are left out."""
        if key is None:
            return [("", {})]
        dimension = self.dimensions[key]
        pairs = list(zip(dimension.labels, dimension.values, strict=True))
        if key == "prompt":
            images = self.study.results.images
            dev = set(images.loc[images["split"] == "dev", "prompt"])
            pairs = [pair for pair in pairs if pair[1] in dev] or pairs
        return [(label, {key: value}) for label, value in pairs]

    def cell(self, at: Coordinate, *, control: bool = False) -> Cell:
        """What stands at a coordinate; `control`: the control's image there."""
        trial_id = self._trial(at)
        if trial_id is None:
            return Cell(path=None, reason="not in this sweep")
        arm = self.control if control else self._arm(at)
        if arm is None:
            return Cell(path=None, reason="no such arm")
        image, other = (self._image(trial_id, name, at) for name in (arm, self.control))
        if image is None:
            return Cell(path=None, reason=self._why(trial_id))
        value, reference = self._value(image), self._value(other)
        apart = None
        if arm != self.control and value is not None and reference is not None:
            apart = value - reference
        row = self._table.iloc[image]
        return Cell(path=row["path"], image_id=row["image_id"], value=value, difference=apart)

    def _image(self, trial_id: str, arm: str, at: Coordinate) -> int | None:
        arm_id = self._arms.get((trial_id, arm))
        return self._images.get((arm_id, at["prompt"], at["seed"]))

    def _value(self, image: int | None) -> float | None:
        return None if image is None else number(self._scores.get(self._table["image_id"].iloc[image]))

    def _trial(self, at: Coordinate) -> str | None:
        if self.by_trial:
            return str(at["trial"]) if "trial" in at else self.study.selected
        for row in self.study.results.trials.to_dict("records"):
            values = {axis: known(row[axis]) for axis in self.study.axes}
            if all(value is None or at[axis] == value for axis, value in values.items()):
                return str(row["trial_id"])
        return None

    def _arm(self, at: Coordinate) -> str | None:
        for arm in self.study.sweep["arms"]:
            params = arm["params"] or {}
            if (arm["family"] or arm["name"]) == at["arm"] and all(
                at[f"arm.{key}"] == value for key, value in params.items()
            ):
                return str(arm["name"])
        return None

    def _why(self, trial_id: str) -> str:
        trials = self.study.results.trials
        row = trials[trials["trial_id"] == trial_id].iloc[0]
        if row["status"] == "completed":
            return "no image"
        return f"trial {row['index']} {row['status']}: {text(row['reason']) or 'no reason was recorded'}"


def _dimensions(study: Study) -> Iterator[Dimension]:
    results = study.results
    for axis in study.axes if study.search == "grid" else []:
        values = tuple(axis_values(study, axis))
        yield Dimension(key=axis, values=values, labels=tuple(axis_value(axis, v) for v in values))
    if len(study.labels) > 1:
        yield Dimension(key="trial", values=tuple(study.labels), labels=tuple(study.labels.values()))
    arms = study.sweep["arms"]
    heads = tuple(dict.fromkeys(str(arm["family"] or arm["name"]) for arm in arms))
    yield Dimension(key="arm", values=heads, labels=heads)
    for key in dict.fromkeys(key for arm in arms for key in arm["params"] or {}):
        given = [arm["params"][key] for arm in arms if key in (arm["params"] or {})]
        several = tuple({str(value): value for value in given}.values())
        labels = tuple(f"{param_name(key)} {value}" for value in several)
        yield Dimension(key=f"arm.{key}", values=several, labels=labels)
    prompts = tuple(dict.fromkeys(results.images.sort_values("split", kind="stable")["prompt"]))
    yield Dimension(key="prompt", values=prompts, labels=prompts)
    seeds = tuple(sorted(int(seed) for seed in results.images["seed"].unique()))
    yield Dimension(key="seed", values=seeds, labels=tuple(f"seed {seed}" for seed in seeds))


def _one_of(option: str, given: str, allowed: Sequence[str]) -> str:
    if given in allowed:
        return given
    raise ConfigError(_unknown(f"{option} {given!r}", given, allowed))


def _unknown(what: str, given: str, allowed: Sequence[str]) -> str:
    near = difflib.get_close_matches(given, allowed, n=3, cutoff=0.0)
    some = ", ".join(name if len(name) <= 60 else f"{name[:59]}…" for name in near)
    return f"{what} is not in this sweep; of {len(allowed)} the nearest: {some}"


def draw_grid(study: Study, workspace: Workspace, view: View) -> tuple[Image.Image, PngInfo]:
    """The picture, and the text chunk `harness` that says what is in it.

    Raises ConfigError for a name that the sweep does not have, and where there are too many cells.
    """
    sheet = Sheet(study, view)
    columns, rows, panels = (sheet.coordinates(key) for key in (sheet.x, sheet.y, sheet.panels))
    if len(columns) * len(rows) * len(panels) > MOST:
        raise ConfigError(
            f"{len(columns) * len(rows) * len(panels):,} cells are too many for one picture, of at most "
            f"{MOST:,}; hold a dimension with --at, as --at seed=0"
        )
    pinned = sheet.x not in ("prompt", "seed")
    tile, down = view.size, view.size + 2 * LINE + GAP
    width = LABEL + (len(columns) + pinned) * (tile + GAP) + GAP
    picture = Image.new("RGB", (width, 3 * LINE + len(panels) * (3 * LINE + len(rows) * down) + GAP), PAPER)
    pen = _Pen(picture)
    name = metric_name(sheet.metric)
    pen.write((GAP, GAP), f"{study.sweep['name']}: {name}, difference from {sheet.control}", width)
    fixed = [f"{key.removeprefix('arm.')} {value}" for key, value in _fixed(sheet).items()]
    pen.write((GAP, GAP + LINE), " · ".join(fixed), width - 2 * GAP, FAINT)
    top, shown = 3 * LINE, []
    for title, panel in panels:
        pen.write((GAP, top), title, LABEL - GAP)
        heads = [sheet.control] * pinned + [label for label, _ in columns]
        for place, head in enumerate(heads):
            pen.write((LABEL + place * (tile + GAP), top + LINE), head, tile)
        top += 2 * LINE + GAP
        for label, row in rows:
            pen.write((GAP, top + tile // 2), label, LABEL - 2 * GAP)
            at = {**sheet.home, **panel, **row}
            cells = [sheet.cell({**at, **columns[0][1]}, control=True)] * pinned
            cells += [sheet.cell({**at, **column}) for _, column in columns]
            for place, cell in enumerate(cells):
                _draw_cell(pen, sheet, workspace, cell, (LABEL + place * (tile + GAP), top), tile=tile)
            shown += [cell.image_id for cell in cells if cell.image_id is not None]
            top += down
        top += LINE - GAP
    return picture, _about(sheet, shown)


def _fixed(sheet: Sheet) -> Coordinate:
    """The dimensions that are held, and where."""
    used = {sheet.x, sheet.y, sheet.panels}
    axes = set(sheet.study.axes) if sheet.by_trial else {"trial"}
    held = {key: sheet.home[key] for key in sheet.dimensions if key not in used | axes}
    if "trial" in held:
        held["trial"] = sheet.study.labels[held["trial"]]
    return held


def _about(sheet: Sheet, images: Sequence[str]) -> PngInfo:
    about = {
        "sweep": sheet.study.sweep["name"],
        "x": sheet.x,
        "y": sheet.y,
        "panels": sheet.panels,
        "at": {key: str(value) for key, value in _fixed(sheet).items()},
        "score": sheet.metric,
        "control": sheet.control,
        "images": list(images),
    }
    chunk = PngInfo()
    chunk.add_itxt("harness", json.dumps(about, ensure_ascii=False))
    return chunk


class _Pen:
    """Text and images on a picture."""

    def __init__(self, picture: Image.Image) -> None:
        self.picture = picture
        self._draw = ImageDraw.Draw(picture)
        self._font = ImageFont.load_default(size=13)

    def write(
        self, at: tuple[int, int], words: str, width: float, colour: tuple[int, int, int] = INK
    ) -> float:
        """Write as much as fits, and say how wide it is."""
        shown = words.replace("−", "-")  # Pillow's own font has no minus sign
        while shown and self._draw.textlength(shown, font=self._font) > width:
            shown = shown[:-2] + "…" if len(shown) > 2 else ""
        self._draw.text(at, shown, font=self._font, fill=colour)
        return self._draw.textlength(shown, font=self._font)

    def frame(self, at: tuple[int, int], size: int) -> None:
        """An empty cell."""
        self._draw.rectangle((*at, at[0] + size - 1, at[1] + size - 1), outline=FAINT)


def _draw_cell(
    pen: _Pen, sheet: Sheet, workspace: Workspace, cell: Cell, at: tuple[int, int], *, tile: int
) -> None:
    image = None if cell.path is None else _opened(workspace.file(cell.path))
    x, y = at
    if image is None:
        pen.frame(at, tile)
        words = "the file is gone or unreadable" if cell.path else cell.reason
        for line, part in enumerate(_wrapped(words, max(8, tile // 8))):
            pen.write((x + 6, y + 6 + line * LINE), part, tile - 12, FAINT)
        return
    factor = tile / max(image.size)
    way = Image.Resampling.NEAREST if max(image.size) <= CRISP else Image.Resampling.LANCZOS
    pen.picture.paste(image.resize((round(image.width * factor), round(image.height * factor)), way), at)
    decimals = sheet.study.decimals[sheet.metric]
    end = pen.write((x, y + tile + 2), plain(cell.value, decimals), tile)
    if cell.difference is not None:
        colour = TONES[tone(cell.difference, decimals, sheet.study.higher_is_better(sheet.metric))]
        pen.write((x + int(end) + 8, y + tile + 2), signed(cell.difference, decimals), tile - end - 8, colour)


def _opened(path: Path) -> Image.Image | None:
    """The pixels; None where the file is gone or unreadable."""
    try:
        with Image.open(path) as opened:
            return opened.convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError):
        return None


def _wrapped(words: str, width: int) -> list[str]:
    return textwrap.wrap(words, width)[:6]
