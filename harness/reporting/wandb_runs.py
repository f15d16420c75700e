"""What a tracker shows of a sweep, as plain values: a run per trial and one for the sweep."""

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd
from PIL import Image

from harness.diffusion.training.record import RECORD, TrainingRecord
from harness.store.workspace import REPORT

if TYPE_CHECKING:
    from harness.results import Results
    from harness.store.workspace import Workspace


CONTRAST_COLUMNS = {  # column of the summary → last part of the key in W&B
    "mean_difference": "difference",
    "ci_low": "ci_low",
    "ci_high": "ci_high",
    "p_value": "p",
    "p_adjusted": "p_adjusted",
    "win_rate": "win_rate",
    "n_pairs": "n_pairs",
}


@dataclass(frozen=True, kw_only=True)
class Strip:
    """Images of one prompt and seed in several arms, side by side, and what they are."""

    paths: tuple[str, ...]  # relative to the workspace, in the caption's order
    caption: str


@dataclass(frozen=True, kw_only=True)
class Run:
    """What one W&B run shall hold. Its digest decides whether it must be written again."""

    run_id: str
    name: str
    group: str
    job_type: str
    config: dict[str, Any]
    summary: dict[str, float | int | str | bool]  # nothing null: what has no number has a reason
    losses: tuple[float, ...] = ()
    strips: tuple[Strip, ...] = ()
    tables: dict[str, list[dict[str, Any]]]
    report: str | None = None  # path of the page
    failed: bool = False

    def digest(self) -> str:
        """Hex sha256 of the content."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True, default=str).encode()).hexdigest()


def trial_runs(results: "Results", workspace: "Workspace", *, images_per_trial: int) -> Iterator[Run]:
    """One run per trial, failed and missing ones too.

    Raises ArtifactError if the training record of an adapter is missing or damaged.
    """
    sweep = results.sweep
    axes = [axis for axis in sweep["axes"] if axis in results.trials]
    scores = _mean_scores(results)
    for trial in results.trials.to_dict("records"):
        labels = {axis.replace(".", "/"): _plain(trial[axis]) for axis in axes}
        yield Run(
            run_id=f"{sweep['name']}-{trial['trial_id']}",
            name=" ".join(f"{axis.rpartition('/')[2]}={value}" for axis, value in labels.items())
            or trial["trial_id"],
            group=sweep["name"],
            job_type="trial",
            config={
                **json.loads(trial["config"]),
                "axes": labels,
                "trial_id": trial["trial_id"],
                "index": trial["index"],
            },
            summary=_known(
                {key: trial[key] for key in ("status", "reason", "selected", "final_loss", "train_seconds")}
                | scores.get(trial["trial_id"], {})
                | _contrasts(results.summary[results.summary["trial_id"] == trial["trial_id"]])
            ),
            losses=_losses(workspace, trial["adapter_path"]),
            strips=tuple(_strips(results, trial["trial_id"], images_per_trial)),
            tables={},
            failed=trial["status"] != "completed",
        )


def sweep_run(results: "Results", workspace: "Workspace") -> Run:
    """The run of the sweep as a whole: its tables, its page, which trial was selected."""
    sweep = results.sweep
    status = results.trials["status"].value_counts()
    selected = results.trials.loc[results.trials["selected"].fillna(False).astype(bool), "trial_id"]
    report = workspace.sweep(sweep["name"]) / REPORT
    counts = {f"trials/{name}": int(status[name]) for name in status.index}
    best = (
        {"selected_trial": selected.iloc[0]}
        if len(selected)
        else {"selected_trial/reason": "no usable trial"}
    )
    return Run(
        run_id=f"{sweep['name']}-sweep",
        name=sweep["name"],
        group=sweep["name"],
        job_type="sweep",
        config={
            key: sweep[key]
            for key in ("name", "question", "model", "axes", "arms", "seeds", "sampler", "analysis")
        },
        summary={**counts, **best},
        tables={
            "summary": _records(results.summary),
            "trials": _records(results.trials.drop(columns=["config", "selected"])),
        },
        report=str(report) if report.is_file() else None,
    )


def side_by_side(workspace: "Workspace", strip: Strip) -> Image.Image | None:
    """The strip as one image; null where one of its images is gone or unreadable."""
    images = []
    for path in strip.paths:
        try:
            with Image.open(workspace.file(path)) as opened:
                images.append(opened.convert("RGB"))
        except OSError:
            return None
    gap = max(2, images[0].width // 32)
    sheet = Image.new(
        "RGB", (sum(p.width + gap for p in images) - gap, max(p.height for p in images)), "white"
    )
    x = 0
    for image in images:
        sheet.paste(image, (x, 0))
        x += image.width + gap
    return sheet


def _mean_scores(results: "Results") -> dict[str, dict[str, float]]:
    """Trial id → mean score of each split, arm and metric over the images that have one."""
    images = results.images[["arm_id", "image_id", "split"]]
    table = results.arms.merge(images, on="arm_id").merge(results.scores, on="image_id")
    means = table.dropna(subset=["value"]).groupby(["trial_id", "split", "arm", "metric"])["value"].mean()
    found: dict[str, dict[str, float]] = {}
    for row in means.reset_index().to_dict("records"):
        key = f"score/{row['split']}/{row['arm']}/{row['metric']}"
        found.setdefault(row["trial_id"], {})[key] = float(row["value"])
    return found


def _contrasts(summary: pd.DataFrame) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for row in summary.to_dict("records"):
        key = f"contrast/{row['split']}/{row['arm']}/{row['control']}/{row['metric']}"
        found |= {f"{key}/{part}": row[column] for column, part in CONTRAST_COLUMNS.items()}
        found[f"{key}/reason"] = row["reason"]
    return found


def _strips(results: "Results", trial_id: str, limit: int) -> Iterator[Strip]:
    """The first `limit` dev pairs in the order of the prompts, every arm that has one, controls first."""
    primary = results.sweep["analysis"]["primary"]
    scores = results.scores.loc[results.scores["metric"] == primary, ["image_id", "value"]]
    arms = results.arms[results.arms["trial_id"] == trial_id].drop(columns="trial_id")
    if arms["is_control"].all() or limit == 0:
        return
    frame = results.images.loc[results.images["split"] == "dev"].drop(columns=["arm", "trial_id"])
    images = arms.merge(frame, on="arm_id").merge(scores, on="image_id", how="left")
    names = [arm["name"] for arm in results.sweep["arms"]]
    prompts = [prompt["text"] for prompt in results.sweep["prompts"]]
    images["place"] = images["is_control"].map({True: 0, False: 1}) * len(names) + images["arm"].map(
        names.index
    )
    images["prompt_place"] = images["prompt"].map(prompts.index)
    shown = 0
    for (_, seed), cell in images.groupby(["prompt_place", "seed"]):
        if cell["is_control"].all() or shown == limit:
            continue
        cell = cell.sort_values("place")
        words = [
            f"{r['arm']} {'–' if pd.isna(r['value']) else format(r['value'], '.2f')}"
            for r in cell.to_dict("records")
        ]
        caption = f"{cell['prompt'].iloc[0]} (seed {seed}), {primary}, left to right: {', '.join(words)}"
        yield Strip(paths=tuple(cell["path"]), caption=caption)
        shown += 1


def _losses(workspace: "Workspace", adapter_path: str | None) -> tuple[float, ...]:
    """The loss of each training step; none if the trial has no adapter."""
    if not isinstance(adapter_path, str):
        return ()
    return tuple(TrainingRecord.parse(workspace.artifact(adapter_path).read(RECORD)).losses)


def _known(values: dict[str, Any]) -> dict[str, float | int | str | bool]:
    """Values a tracker can carry: what is null is left out (its reason stands beside it)."""
    plain = {key: _plain(value) for key, value in values.items()}
    return {key: value for key, value in plain.items() if value is not None}


def _plain(value: Any) -> Any:
    """A Python number, string or truth value; null for anything missing."""
    if value is None or value is pd.NA or (isinstance(value, float) and not math.isfinite(value)):
        return None
    return value.item() if hasattr(value, "item") else value


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(key): _plain(value) for key, value in row.items()} for row in frame.to_dict("records")]
