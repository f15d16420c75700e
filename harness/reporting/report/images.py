"""Images on the page: the pairs shown (by rule, not by eye), and their thumbnails."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
from PIL import Image

from harness.reporting.report.layout import MOST_SHOWN, Family, Layout, shown_arms
from harness.results.contrast import number, text
from harness.results.study import Study
from harness.store.workspace import Workspace

SHOWN = 3  # rows in each of best, median and worst
BYTES = 7_000_000  # of all thumbnails; the page stays below 12 MB as base64
LONGEST = 256  # pixels; larger images are made smaller
CRISP = 96  # pixels; smaller images are shown enlarged, pixel by pixel


@dataclass(frozen=True, kw_only=True)
class Thumbnail:
    """An embedded image."""

    uri: str
    width: int
    height: int

    @property
    def crisp(self) -> bool:
        """True for images so small that they are shown enlarged."""
        return max(self.width, self.height) <= CRISP


@dataclass(frozen=True, kw_only=True)
class Shot:
    """An image of one arm in a row, with its primary score and the difference from the main control's."""

    arm: str
    score: float | None
    difference: float | None
    reason: str | None
    thumbnail: Thumbnail | None


@dataclass(frozen=True, kw_only=True)
class Row:
    """The same prompt and seed in every arm."""

    prompt: str
    seed: int
    shots: tuple[Shot, ...]


@dataclass(frozen=True, kw_only=True)
class Group:
    """Rows with what they were chosen by."""

    title: str
    rows: tuple[Row, ...]


@dataclass
class Thumbnails:
    """Encodes images of a workspace and counts the bytes they take on the page."""

    workspace: Workspace
    spent: int = 0
    _known: dict[str, Thumbnail | None] = field(default_factory=dict)

    def __call__(self, path: str) -> Thumbnail | None:
        """The image's thumbnail; null where the file is gone or unreadable."""
        if path not in self._known:
            self._known[path] = _encode(self.workspace.file(path))
        found = self._known[path]
        self.spent += len(found.uri) if found else 0
        return found


def _encode(path: Path) -> Thumbnail | None:
    try:
        with Image.open(path) as opened:
            image = opened.convert("RGB")
    except OSError:
        return None
    small = max(image.size) <= CRISP
    image.thumbnail((LONGEST, LONGEST), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", lossless=small, quality=80 if small else 82, method=4)
    uri = "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
    return Thumbnail(uri=uri, width=image.width, height=image.height)


def arm_images(study: Study, trial_id: str) -> pd.DataFrame:
    """Images of all arms of a trial, with `value` and `reason` of their primary score."""
    results = study.results
    arms = results.arms.loc[results.arms["trial_id"] == trial_id, ["arm", "arm_id"]]
    scores = results.scores.loc[results.scores["metric"] == study.primary, ["image_id", "value", "reason"]]
    images = results.images.drop(columns=["arm", "trial_id"])
    return arms.merge(images, on="arm_id").merge(scores, on="image_id", how="left")


def differences(study: Study, images: pd.DataFrame, split: str) -> pd.Series:
    """Gain of the headline arm over the main control by (prompt_id, seed), best first, where there is one."""
    on_split = images[images["split"] == split]
    wide = on_split.pivot_table(index=["prompt_id", "seed"], columns="arm", values="value", sort=False)
    if study.arm not in wide or study.control not in wide:
        return pd.Series(dtype=float)
    reference = study.contrast(study.selected, control=study.control, split=split)
    down = reference is not None and reference.higher_is_better is False
    gains = (wide[study.arm] - wide[study.control]).dropna() * (-1 if down else 1)
    return gains.sort_values(ascending=False, kind="stable")


def image_rows(study: Study, thumbnails: Thumbnails) -> tuple[list[Group], Group | None]:
    """Best, median and worst pairs of the selected trial by difference; then all pairs in order of prompt."""
    if study.selected is None:
        return [], None
    images = arm_images(study, study.selected)
    gains = differences(study, images, study.split)
    cells = dict(iter(images.groupby(["prompt_id", "seed"])))
    keys = list(gains.index)
    arms = shown_arms(study)
    groups = [
        Group(title=title, rows=tuple(_row(study, cells[key], thumbnails, arms) for key in chosen))
        for title, chosen in _choose(keys)
    ]
    every = []
    in_order = images.loc[images["split"] == study.split, ["prompt_id", "seed"]].drop_duplicates()
    for key in in_order.itertuples(index=False, name=None):
        if len(keys) <= 3 * SHOWN or thumbnails.spent > BYTES:
            break
        every.append(_row(study, cells[key], thumbnails, arms))
    missing = "" if len(every) == len(in_order) else f" (the first {len(every)} of {len(in_order)})"
    return groups, Group(
        title=f"All pairs in order of the prompts{missing}", rows=tuple(every)
    ) if every else None


def family_row(study: Study, family: Family, thumbnails: Thumbnails) -> Row | None:
    """The selected trial's median pair in the control and along a family of arms. Null without pairs."""
    assert study.selected is not None, "a family is drawn for the selected trial"
    images = arm_images(study, study.selected)
    gains = differences(study, images, study.split)
    if gains.empty:
        return None
    prompt_id, seed = gains.index[(len(gains) - 1) // 2]
    cell = images[(images["prompt_id"] == prompt_id) & (images["seed"] == seed)]
    arms = [study.control, *(point.arm for point in family.points)]
    return _row(study, cell, thumbnails, arms[:MOST_SHOWN])


def _choose(keys: list[tuple[str, int]]) -> list[tuple[str, list[tuple[str, int]]]]:
    total = len(keys)
    if total <= 3 * SHOWN:
        return [(f"All {total} pairs, best difference first", keys)] if total else []
    middle = (total - SHOWN) // 2
    return [
        (f"The {SHOWN} best of {total} pairs", keys[:SHOWN]),
        (f"The {SHOWN} around the median", keys[middle : middle + SHOWN]),
        (f"The {SHOWN} worst", keys[-SHOWN:]),
    ]


def _row(study: Study, cell: pd.DataFrame, thumbnails: Thumbnails, arms: Sequence[str]) -> Row:
    by_arm = {row["arm"]: row for row in cell.to_dict("records")}
    control = number(by_arm[study.control]["value"]) if study.control in by_arm else None
    first = cell.iloc[0]
    return Row(
        prompt=str(first["prompt"]),
        seed=int(first["seed"]),
        shots=tuple(_shot(arm, by_arm.get(arm), control, study, thumbnails) for arm in arms),
    )


def _shot(arm: str, row: dict | None, control: float | None, study: Study, thumbnails: Thumbnails) -> Shot:
    if row is None:
        return Shot(arm=arm, score=None, difference=None, reason="no image", thumbnail=None)
    score = number(row["value"])
    compared = arm != study.control and score is not None and control is not None
    thumbnail = thumbnails(row["path"])
    reason = "the file is gone or unreadable" if thumbnail is None else text(row["reason"])
    return Shot(
        arm=arm,
        score=score,
        difference=score - control if compared and score is not None and control is not None else None,
        reason=reason,
        thumbnail=thumbnail,
    )


@dataclass(frozen=True, kw_only=True)
class ImageGrid:
    """One prompt and seed in every trial of the sweep, laid out as the heat-map is."""

    prompt: str
    seed: int
    layout: Layout
    control: Shot
    shots: dict[str, Shot]  # by trial id


def image_grid(study: Study, grid: Layout | None, thumbnails: Thumbnails) -> ImageGrid | None:
    """The selected trial's median dev pair, as every trial draws it. Null where nothing varies."""
    if grid is None or study.selected is None:
        return None
    images = arm_images(study, study.selected)
    gains = differences(study, images, "dev")
    if gains.empty:
        return None
    prompt_id, seed = gains.index[(len(gains) - 1) // 2]
    shots: dict[str, Shot] = {}
    control: Shot | None = None
    for trial_id in study.labels:
        own = arm_images(study, trial_id)
        cell = own[(own["prompt_id"] == prompt_id) & (own["seed"] == seed)]
        if len(cell):
            row = _row(study, cell, thumbnails, [study.control, study.arm])
            by_arm = {shot.arm: shot for shot in row.shots}
            shots[trial_id] = by_arm[study.arm]
            control = by_arm[study.control] if trial_id == study.selected else control
    assert control is not None, "the selected trial has the pair it was chosen by"
    chosen = images[(images["prompt_id"] == prompt_id) & (images["seed"] == seed)].iloc[0]
    return ImageGrid(prompt=str(chosen["prompt"]), seed=int(seed), layout=grid, control=control, shots=shots)
