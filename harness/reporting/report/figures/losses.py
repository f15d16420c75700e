"""The loss of every training run over its steps, and held-out loss where images were held out."""

import math
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from harness.errors import ArtifactError
from harness.reporting.report.figures.svg import BLUE, MARKERS, MUTED, PALETTE, inline, page_style
from harness.reporting.report.layout import STEPS
from harness.results.contrast import known
from harness.results.format import axis_value
from harness.results.study import Study
from harness.store.training_record import RECORD, TrainingRecord
from harness.store.workspace import Workspace

MOST_POINTS = 12_000  # of all lines of the figure
WINDOW = 0.05  # share of a run's steps that a point of its line is the mean of


@dataclass(frozen=True, kw_only=True)
class RunLosses:
    """One training run."""

    label: str
    selected: bool
    training: tuple[float, ...]  # of each step, the first step first
    validation: dict[int, float]  # by step; empty where no images were held out


def run_losses(study: Study, workspace: Workspace) -> list[RunLosses]:
    """The runs that have a checkpoint, in the sweep's order; of each its longest."""
    others = [axis for axis in study.axes if axis != STEPS]
    trials = study.results.trials
    found = []
    for _, rows in trials[trials["adapter_path"].notna()].groupby("run_id", sort=False):
        records = [record for path in rows["adapter_path"] if (record := _record(workspace, path))]
        if not records:
            continue
        longest = max(records, key=lambda record: record.step)
        first = rows.iloc[0]
        label = " · ".join(axis_value(axis, first[axis]) for axis in others if known(first[axis]) is not None)
        found.append(
            RunLosses(
                label=label or "the run",
                selected=study.selected in set(rows["trial_id"]),
                training=tuple(longest.losses),
                validation=longest.validation or {},
            )
        )
    return found


def _record(workspace: Workspace, path: str) -> TrainingRecord | None:
    """None where it is gone or damaged: the figure is not worth the page."""
    try:
        return TrainingRecord.parse(workspace.artifact(path).read(RECORD))
    except (ArtifactError, OSError):
        return None


def loss_curves(runs: list[RunLosses]) -> Markup | None:
    """A line per run, smoothed; of many runs all but the selected are grey. None without any run."""
    if not runs:
        return None
    held_out = any(run.validation for run in runs)
    many = len(runs) > len(PALETTE)
    most = max(2, MOST_POINTS // len(runs))
    with page_style():
        figure = Figure(figsize=(7.2 if held_out else 5.4, 3.0), layout="constrained")
        panels = figure.subplots(1, 2 if held_out else 1, sharex=True, squeeze=False)[0]
        for place, run in enumerate(runs):
            muted = many and not run.selected
            style = {
                "color": MUTED if muted else BLUE if many else PALETTE[place],
                "linewidth": 0.8 if muted else 1.6,
                "alpha": 0.6 if muted else 1.0,
                "label": None if muted else run.label,
                "zorder": 3 if run.selected else 2,
            }
            steps, losses = smoothed(run.training, most)
            panels[0].plot(steps, losses, **style)
            if held_out:
                marker = MARKERS[place % len(MARKERS)]
                panels[1].plot(
                    list(run.validation), list(run.validation.values()), marker=marker, markersize=4, **style
                )
        _label(panels[0], "training")
        panels[0].set_ylabel("loss")
        if held_out:
            _label(panels[1], "held-out images")
        handles, labels = panels[0].get_legend_handles_labels()
        if labels and (len(runs) > 1 or labels != ["the run"]):
            figure.legend(handles, labels, loc="outside lower center", ncols=3)
        return inline(figure, name="losses", alt="Training loss over the steps of each run.")


def _label(axes: Axes, title: str) -> None:
    axes.set_title(title)
    axes.set_xlabel("training steps")


def smoothed(losses: tuple[float, ...], most: int) -> tuple[list[int], list[float]]:
    """Steps and running means, at most so many points; each mean is of the steps up to its own."""
    window = max(1, round(WINDOW * len(losses)))
    total = np.concatenate([[0.0], np.cumsum(losses)])
    every = max(1, math.ceil(len(losses) / most))
    steps = [*range(every, len(losses), every), len(losses)]
    means = [float((total[step] - total[max(0, step - window)]) / min(step, window)) for step in steps]
    return steps, means
