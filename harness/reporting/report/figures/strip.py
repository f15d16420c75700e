"""Strips beside the verdict: a point per prompt, its mean and interval, one axis for all controls."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
from markupsafe import Markup, escape

from harness.config.loading.files import one_line
from harness.reporting.report.images import arm_images
from harness.results.contrast import Contrast
from harness.results.format import signed
from harness.results.study import Study

WIDTH, HEIGHT, EDGE = 300, 46, 10  # CSS pixels of a strip; room at either end
BAND = 26  # height in which points are kept apart
RADIUS = 3.5


@dataclass(frozen=True, kw_only=True)
class Point:
    """A prompt's mean difference over its seeds, and the image rows (control, arm) of each seed."""

    prompt: str
    difference: float
    pairs: tuple[tuple[int, int], ...]


def strips(study: Study, contrasts: Sequence[Contrast]) -> dict[str, Markup]:
    """By control, the paired differences of the selected trial's arm. Empty where there are none."""
    if study.selected is None:
        return {}
    points = {c.control: _points(study, c) for c in contrasts if c.difference is not None}
    ends = [point.difference for some in points.values() for point in some]
    ends += [end for c in contrasts for end in (c.low, c.high) if end is not None]
    if not ends:
        return {}
    low, high = min(0.0, *ends), max(0.0, *ends)
    if low == high:
        return {}
    return {
        c.control: _figure(study, c, points[c.control], (low, high))
        for c in contrasts
        if points.get(c.control)
    }


def _points(study: Study, contrast: Contrast) -> list[Point]:
    images = arm_images(study, contrast.trial_id)
    images = images[(images["split"] == contrast.split)]
    rows = pd.Series(range(len(study.results.images)), index=study.results.images["image_id"])
    images = images.assign(row=images["image_id"].map(rows))
    sides = {
        side: images[images["arm"] == name].set_index(["prompt_id", "seed"])
        for side, name in (("own", contrast.arm), ("other", contrast.control))
    }
    other = sides["other"][["value", "row"]].add_suffix("_control")
    pairs = sides["own"].join(other, how="inner")
    pairs = pairs.assign(difference=pairs["value"] - pairs["value_control"]).dropna(subset=["difference"])
    return [
        Point(
            prompt=one_line(some["prompt"].iloc[0]),
            difference=float(some["difference"].mean()),
            pairs=tuple(zip(some["row_control"].astype(int), some["row"].astype(int), strict=True)),
        )
        for _, some in pairs.groupby("prompt_id", sort=False)
    ]


def _figure(study: Study, contrast: Contrast, points: Sequence[Point], reach: tuple[float, float]) -> Markup:
    decimals = study.decimals[contrast.metric]
    low, high = reach

    def x(value: float) -> float:
        return round(EDGE + (value - low) / (high - low) * (WIDTH - 2 * EDGE), 1)

    words = f"{len(points)} prompts, differences from {contrast.control}"
    parts = [
        f'<svg class="strip" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" role="group" '
        f'aria-label="{escape(words)}">',
        f'<line class="zero" x1="{x(0)}" x2="{x(0)}" y1="0" y2="{HEIGHT}"/>',
    ]
    for point, y in zip(points, _apart({i: x(p.difference) for i, p in enumerate(points)}), strict=True):
        label = f"{point.prompt}: {signed(point.difference, decimals)}"
        pairs = ";".join(f"{control},{own}" for control, own in point.pairs)
        parts.append(
            f'<circle class="point" cx="{x(point.difference)}" cy="{y}" r="{RADIUS}" data-pairs="{pairs}" '
            f'role="img" aria-label="{escape(label)}"><title>{escape(label)}</title></circle>'
        )
    middle = HEIGHT - 7
    if contrast.low is not None and contrast.high is not None:
        parts.append(
            f'<line class="whisker" x1="{x(contrast.low)}" x2="{x(contrast.high)}" '
            f'y1="{middle}" y2="{middle}"/>'
        )
    assert contrast.difference is not None, "strips are drawn of contrasts with a number"
    at = x(contrast.difference)
    parts.append(f'<path class="mean" d="M{at - 5} {middle}l5 -5l5 5l-5 5z"/></svg>')
    return Markup("".join(parts))


def _apart(places: Mapping[int, float]) -> list[float]:
    """Heights of points at these x, so that few lie on each other: each takes the first free lane."""
    lanes: list[float] = []  # the last x in each lane
    most = int(BAND // (2 * RADIUS)) or 1
    lane_of: dict[int, int] = {}
    for point in sorted(places, key=lambda point: places[point]):
        at = places[point]
        free = [lane for lane, last in enumerate(lanes) if at - last >= 2 * RADIUS]
        if free:
            lane = free[0]
        elif len(lanes) < most:
            lane = len(lanes)
            lanes.append(at)
        else:
            lane = min(range(most), key=lambda lane: lanes[lane])
        lanes[lane] = at
        lane_of[point] = lane
    return [round(RADIUS + 1 + lane_of[point] * 2 * RADIUS, 1) for point in range(len(places))]
