"""What the page's script works with: trials, arms, images, scores and contrasts as one JSON text.

Names are numbers in lists that stand once; a table is an object of columns. A missing number is null, a
missing row −1.
"""

import json
import math
from typing import Any

from harness.reporting.report.images import arm_images, differences
from harness.reporting.report.layout import is_numeric, param_name
from harness.reporting.report.thumbnails import Encoded, Parameters, Thumbnails
from harness.results.contrast import known, text
from harness.results.format import axis_name, axis_value, metric_name
from harness.results.study import Study

DIGITS = 6  # of a number, enough for whatever is shown


def page_data(study: Study, thumbnails: Thumbnails, base: str | None) -> dict[str, Any]:
    """Everything the script needs. `base` leads from the page to the workspace's images; None: nowhere."""
    images = study.results.images
    found = thumbnails.rest(_order(study))
    return {
        "sweep": study.sweep["name"],
        "base": base,
        "search": study.search,
        "primary": _place(study.metrics, study.primary),
        "control": _place(_arms(study), study.control),
        "arm": _place(_arms(study), study.arm),
        "split": study.split,
        "selected": _place(list(study.labels), study.selected),
        "start": _start(study),
        "metrics": [_metric(study, metric) for metric in study.metrics],
        "axes": [_axis(study, axis) for axis in study.axes] if study.search == "grid" else [],
        "arms": [_arm(study, arm) for arm in study.sweep["arms"]],
        "params": {key: param_name(key) for arm in study.sweep["arms"] for key in arm["params"] or {}},
        "prompts": _prompts(study),
        "seeds": sorted(int(seed) for seed in images["seed"].unique()) if len(images) else [],
        "draws": _arm_ids(study),
        "trials": _trials(study),
        "images": _images(study, found),
        "contrasts": _contrasts(study),
        "left_out": len(images) - len(found),
        # None if there is none, "" where a row of pairs has it
        "thumbnails": [found[row].uri if row in found else None for row in range(len(images))],
    }


def as_script(data: dict[str, Any]) -> str:
    """JSON that may stand in a `<script>` element, whatever stands in the tables."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def _arms(study: Study) -> list[str]:
    return [arm["name"] for arm in study.sweep["arms"]]


def _arm_ids(study: Study) -> list[str]:
    return list(study.results.arms["arm_id"].dropna().unique())


def _place(names: list[str], name: str | None) -> int:
    return names.index(name) if name in names else -1


def _order(study: Study) -> list[int]:
    """Rows of images, those of the headline's arm and of its control first: the bytes may not do for all."""
    images = study.results.images.reset_index(drop=True)
    first = images["arm"].isin([study.arm, study.control])
    return [*images.index[first], *images.index[~first]]


def _metric(study: Study, metric: str) -> dict[str, Any]:
    return {
        "name": metric_name(metric),
        "decimals": study.decimals[metric],
        "higher": study.higher_is_better(metric),
    }


def _axis(study: Study, axis: str) -> dict[str, Any]:
    values = axis_values(study, axis)
    return {"key": axis, "name": axis_name(axis), "values": [axis_value(axis, value) for value in values]}


def axis_values(study: Study, axis: str) -> list[Any]:
    """The values of an axis that some trial has, numbers in order."""
    values = list(study.results.trials[axis].dropna().unique())
    return sorted(values) if is_numeric(study, axis) else values


def _arm(study: Study, arm: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": arm["name"],
        "head": arm["family"] or arm["name"],
        "params": {
            key: value if isinstance(value, int | float) else str(value)
            for key, value in (arm["params"] or {}).items()
        },
        "control": arm["name"] in study.controls,
        "negative": arm["negative"],
        "about": study.about(arm["name"]),
    }


def _prompts(study: Study) -> list[dict[str, str]]:
    """Those with images, dev first."""
    images = study.results.images
    rows = images[["prompt_id", "prompt", "split"]].drop_duplicates().sort_values("split", kind="stable")
    return [
        {"id": str(row["prompt_id"]), "text": str(row["prompt"]), "split": str(row["split"])}
        for row in rows.to_dict("records")
    ]


def _trials(study: Study) -> list[dict[str, Any]]:
    values = {axis: axis_values(study, axis) for axis in study.axes}
    draws = {name: place for place, name in enumerate(_arm_ids(study))}
    of_trial = {
        (row.trial_id, row.arm): draws.get(str(row.arm_id), -1)
        for row in study.results.arms.itertuples(index=False)
    }
    rows = []
    for row in study.results.trials.to_dict("records"):
        at = [
            -1 if known(row[axis]) is None else values[axis].index(row[axis])
            for axis in (study.axes if study.search == "grid" else [])
        ]
        rows.append(
            {
                "index": int(row["index"]),
                "label": study.labels[row["trial_id"]],
                "status": row["status"],
                "reason": text(row["reason"]),
                "at": at,
                "draws": [of_trial.get((row["trial_id"], arm), -1) for arm in _arms(study)],
            }
        )
    return rows


def _images(study: Study, found: dict[int, Encoded]) -> dict[str, Any]:
    """Columns; `parameters` and `noise` are those of `Parameters.add`."""
    images = study.results.images
    draws = {name: place for place, name in enumerate(_arm_ids(study))}
    prompts = {(p["id"], p["split"]): place for place, p in enumerate(_prompts(study))}
    seeds = {seed: place for place, seed in enumerate(sorted(images["seed"].unique()))}
    parameters = Parameters()
    texts = [
        parameters.add(found[row].parameters if row in found else "", prompt)
        for row, prompt in enumerate(images["prompt"])
    ]
    scores = study.results.scores.set_index(["image_id", "metric"])
    columns = {}
    for metric in study.metrics:
        of_metric = scores[scores.index.get_level_values("metric") == metric].droplevel("metric")
        columns[metric] = of_metric["value"].reindex(images["image_id"]).astype(float)
    reasons = study.results.scores.dropna(subset=["reason"])
    places = {image: row for row, image in enumerate(images["image_id"])}
    return {
        "draw": [draws.get(arm, -1) for arm in images["arm_id"]],
        "prompt": [prompts[key] for key in zip(images["prompt_id"], images["split"], strict=True)],
        "seed": [seeds[seed] for seed in images["seed"]],
        "path": list(images["path"]),
        "id": list(images["image_id"]),
        "size": [[int(w), int(h)] for w, h in zip(images["width"], images["height"], strict=True)],
        "scores": [[_number(value) for value in columns[metric]] for metric in study.metrics],
        "reasons": {
            f"{places[image]} {_place(study.metrics, metric)}": why
            for image, metric, why in zip(
                reasons["image_id"], reasons["metric"], reasons["reason"], strict=True
            )
            if image in places and metric in study.metrics
        },
        "parameters": [number for number, _ in texts],
        "noise": [seed for _, seed in texts],
        "templates": parameters.templates,
    }


def _contrasts(study: Study) -> list[list[float | int | None]]:
    """Rows of trial, arm, control, metric, split (0 dev, 1 test), difference, low, high, prompts."""
    trials = {name: place for place, name in enumerate(study.labels)}
    arms = {name: place for place, name in enumerate(_arms(study))}
    metrics = {name: place for place, name in enumerate(study.metrics)}
    return [
        [
            trials[c.trial_id], arms[c.arm], arms[c.control], metrics[c.metric], int(c.split == "test"),
            _number(c.difference), _number(c.low), _number(c.high), c.n_prompts,
        ]
        for c in study.contrasts.values()
        if c.difference is not None
    ]  # fmt: skip


def _start(study: Study) -> list[int]:
    """Prompt and seed that the grid begins with: the selected trial's median dev pair, else the first."""
    if study.selected is None:
        return [0, 0]
    gains = differences(study, arm_images(study, study.selected), "dev")
    if gains.empty:
        return [0, 0]
    prompt_id, seed = gains.index[(len(gains) - 1) // 2]
    ids = [(p["id"], p["split"]) for p in _prompts(study)]
    return [ids.index((prompt_id, "dev")), sorted(study.results.images["seed"].unique()).index(seed)]


def _number(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(f"{value:.{DIGITS}g}")
