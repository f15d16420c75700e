"""What a tracker shows of a sweep, as plain values: a run per trial, per control, and one for the sweep.

Keys are the same in all runs, so that W&B's panels line up: `train/…` and `eval/…` by training step,
`primary/…` (on dev prompts, so that trials compare) and `test/…` in the summary, `images/ARM` with the same
prompts and seeds in the same order in every run.
"""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import pandas as pd

from harness.config.loading.files import one_line
from harness.store.training_record import RECORD, TrainingRecord
from harness.store.workspace import REPORT

if TYPE_CHECKING:
    from harness.results import Results
    from harness.store.workspace import Workspace


CONTRAST_COLUMNS = {  # column of the summary → last part of the key in W&B
    "mean_difference": "difference",
    "ci_low": "ci_low",
    "ci_high": "ci_high",
    "p_adjusted": "p",
    "win_rate": "win_rate",
    "n_prompts": "n_prompts",
}
MOST_NAME = 128  # letters of a run's name
STEP = "train/step"  # the x axis of `train/…` and `eval/…`
LOSS = "train/loss"
VALIDATION_LOSS = "train/validation_loss"
EVAL_DIFFERENCE = "eval/primary/difference"
DIFFERENCE = "primary/difference"
DEV_IMAGES, TEST_IMAGES = "images", "test_images"
OWN_KEYS = ("trial", "trial_id", "trial_config", "arm", "arm_config")  # of a run's config, beside its axes


@dataclass(frozen=True, kw_only=True)
class Shown:
    """One image. Without a path it is missing, and its place in the list is kept."""

    path: str | None  # relative to the workspace
    sha256: str | None
    caption: str


@dataclass(frozen=True, kw_only=True)
class Run:
    """What one W&B run shall hold. Its digest decides whether it must be written again."""

    run_id: str
    name: str
    group: str
    job_type: str
    tags: tuple[str, ...]
    config: dict[str, Any]
    summary: dict[str, float | int | str | bool]  # nothing null: what has no number has a reason
    history: tuple[dict[str, float], ...] = ()  # one row per training step, `STEP` among its keys
    images: dict[str, tuple[Shown, ...]] = field(default_factory=dict)
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    page: str | None = None  # path of the HTML page
    page_sha256: str | None = None
    failed: bool = False

    def digest(self) -> str:
        """Hex sha256 of the content, that of images and page included."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True, default=str).encode()).hexdigest()


def all_runs(results: "Results", workspace: "Workspace", *, images_per_arm: int) -> list[Run]:
    """Every run of a sweep: trials (failed and missing ones too), controls, and the sweep itself.

    Raises ArtifactError if the training record of an adapter is missing or damaged.
    """
    shown = _Images(results, images_per_arm)
    return [
        *_trial_runs(results, workspace, shown),
        *_control_runs(results, shown),
        _sweep_run(results, workspace),
    ]


def flat_names(axes: Sequence[str]) -> dict[str, str]:
    """Axis → its key in a run's config: the last part of its name, or all of it where that is not its own."""
    tails = Counter(axis.rpartition(".")[2] for axis in axes)
    names = {}
    for axis in axes:
        tail = axis.rpartition(".")[2]
        alone = tails[tail] == 1 and tail not in (*OWN_KEYS, "kind", "name")
        names[axis] = tail if alone else axis.replace(".", "_")
    return names


def own_arm(results: "Results", trial_id: str) -> str:
    """The arm that a trial is judged by: of several with its adapter, the best on dev prompts."""
    rows = _primary_rows(results, trial_id, "dev").dropna(subset=["mean_difference"])
    if rows.empty:
        return str(results.arms.loc[~results.arms["is_control"].astype(bool), "arm"].iloc[0])
    up = rows["higher_is_better"].astype("boolean").fillna(True).astype(bool)
    gain = rows["mean_difference"].where(up, -rows["mean_difference"])
    return str(rows["arm"].iloc[int(gain.to_numpy(dtype=float).argmax())])


def training_rows(workspace: "Workspace", run_id: str, steps: int) -> dict[int, dict[str, float]]:
    """By step: the losses of a training run as its last checkpoint up to `steps` has them; none without."""
    reached = [step for step in workspace.checkpoints(run_id) if step <= steps]
    if not reached:
        return {}
    record = TrainingRecord.parse(workspace.checkpoint(run_id, reached[-1]).read(RECORD))
    rows = {step: {STEP: step, LOSS: loss} for step, loss in enumerate(record.losses, start=1)}
    for step, loss in (record.validation or {}).items():
        if step in rows:
            rows[step][VALIDATION_LOSS] = loss
    return rows


def trial_identity(sweep: Mapping[str, Any], trial: Mapping[Any, Any]) -> dict[str, Any]:
    """What a trial's run is called, and its config; `trial` has the columns of the table, axes included.

    Known before anything is trained, so that a run may begin with it.
    """
    names = flat_names(sweep["axes"])
    axes = {names[axis]: _plain(trial[axis]) for axis in sweep["axes"] if axis in trial}
    return {
        "run_id": f"{sweep['name']}-{trial['trial_id']}",
        "name": _run_name(f"{name}={value}" for name, value in axes.items()) or trial["trial_id"],
        "group": sweep["name"],
        "job_type": "trial",
        "config": {
            **axes,
            "trial": trial["index"],
            "trial_id": trial["trial_id"],
            "trial_config": json.loads(trial["config"]),
        },
    }


def _run_name(parts: Iterable[str]) -> str:
    """On one line, and no longer than W&B takes."""
    return one_line(" ".join(parts), MOST_NAME)


def _trial_runs(results: "Results", workspace: "Workspace", shown: "_Images") -> Iterator[Run]:
    sweep = results.sweep
    means = _mean_scores(results)
    for trial in results.trials.to_dict("records"):
        trial_id, selected = trial["trial_id"], _plain(trial["selected"]) is True
        facts = ("status", "reason", "selected", "final_loss", "validation_loss", "train_seconds")
        yield Run(
            **trial_identity(sweep, trial),
            tags=(*["selected"] * selected, trial["status"], sweep.get("search", {}).get("kind", "grid")),
            summary=_known(
                _primary(results, trial_id, "dev", "primary")
                | _primary(results, trial_id, "test", "test")
                | {key: trial[key] for key in facts}
            ),
            history=_history(results, workspace, trial, means),
            images=shown.of_trial(trial_id, selected=selected),
            tables={"contrasts": _contrasts(results, trial_id)},
            failed=trial["status"] in ("failed", "missing"),
        )


def _control_runs(results: "Results", shown: "_Images") -> Iterator[Run]:
    """One run per control and setting of it: a sham control, say, is trained once for each rank."""
    arms = results.arms[results.arms["is_control"].astype(bool)]
    names = flat_names(results.axes)
    wide = results.wide()
    for arm, of_arm in arms.groupby("arm", sort=False):
        config = next(config for config in results.sweep["arms"] if config["name"] == arm)
        for arm_id, rows in of_arm.groupby("arm_id", sort=False):
            trials = results.trials[results.trials["trial_id"].isin(rows["trial_id"])]
            fixed = {names[a]: _plain(trials[a].iloc[0]) for a in names if _tells(results.trials, trials, a)}
            images = wide[wide["arm_id"] == arm_id]
            means = {
                f"{split}/{metric['name']}": images.loc[images["split"] == split, metric["name"]].mean()
                for split in ("dev", "test")
                for metric in results.sweep["metrics"]
            }
            yield Run(
                run_id=f"{results.sweep['name']}-control-{arm_id}",
                name=_run_name([str(arm), *(f"{name}={value}" for name, value in fixed.items())]),
                group=results.sweep["name"],
                job_type="control",
                tags=("control",),
                config={**fixed, "arm": arm, "arm_config": config},
                summary=_known({**means, "n_images": len(images)}),
                images=shown.of_arm(str(arm), str(arm_id)),
            )


def _tells(every: pd.DataFrame, some: pd.DataFrame, axis: str) -> bool:
    """Whether these trials share a value of an axis that not all trials have."""
    return some[axis].nunique(dropna=False) == 1 < every[axis].nunique(dropna=False)


def _sweep_run(results: "Results", workspace: "Workspace") -> Run:
    """The run of the sweep as a whole: its tables, its page, which trial was selected."""
    sweep = results.sweep
    status = results.trials["status"].value_counts()
    selected = results.trials.loc[results.trials["selected"].fillna(False).astype(bool), "trial_id"]
    page = workspace.sweep(sweep["name"]) / REPORT
    counts = {f"trials/{name}": int(status[name]) for name in status.index}
    best = (
        {"selected_trial": selected.iloc[0]}
        if len(selected)
        else {"selected_trial/reason": "no usable trial"}
    )
    kept = ("name", "question", "model", "axes", "arms", "seeds", "sampler", "analysis")
    return Run(
        run_id=f"{sweep['name']}-sweep",
        name=sweep["name"],
        group=sweep["name"],
        job_type="sweep",
        tags=("sweep",),
        config={key: sweep[key] for key in kept},
        summary={**counts, **best},
        tables={
            "contrasts": _contrasts(results),
            "trials": _records(results.trials.drop(columns=["config"])),
        },
        page=str(page) if page.is_file() else None,
        page_sha256=hashlib.sha256(page.read_bytes()).hexdigest() if page.is_file() else None,
    )


def _history(
    results: "Results", workspace: "Workspace", trial: dict[Any, Any], means: dict[str, dict[str, float]]
) -> tuple[dict[str, float], ...]:
    """Losses at each step, and scores where the trial or a shorter one of the same training was scored.

    Nothing where its adapter is a file.
    """
    if not isinstance(trial["run_id"], str):
        return ()
    steps = _steps(trial)
    if isinstance(trial["adapter_path"], str):
        workspace.artifact(trial["adapter_path"]).read(RECORD)  # an adapter without its losses is damaged
    rows = training_rows(workspace, trial["run_id"], steps)
    arm = own_arm(results, trial["trial_id"])
    for other in results.trials[results.trials["run_id"] == trial["run_id"]].to_dict("records"):
        at = _steps(other)
        if at not in rows or other["status"] != "completed":
            continue
        rows[at] |= means.get(other["trial_id"], {})
        difference = _primary_rows(results, other["trial_id"], "dev", arm)["mean_difference"].dropna()
        if len(difference):
            rows[at][EVAL_DIFFERENCE] = float(difference.iloc[0])
    return tuple(rows[step] for step in sorted(rows))


def _steps(trial: Mapping[Any, Any]) -> int:
    return int(json.loads(trial["config"])["training"]["steps"])


def _mean_scores(results: "Results") -> dict[str, dict[str, float]]:
    """Trial id → `eval/METRIC/ARM`: mean score over the dev images that have one."""
    images = results.images.loc[results.images["split"] == "dev", ["arm_id", "image_id"]]
    table = results.arms.merge(images, on="arm_id").merge(results.scores, on="image_id")
    means = table.dropna(subset=["value"]).groupby(["trial_id", "metric", "arm"], sort=False)["value"].mean()
    found: dict[str, dict[str, float]] = {}
    for row in means.reset_index().to_dict("records"):
        found.setdefault(row["trial_id"], {})[f"eval/{row['metric']}/{row['arm']}"] = float(row["value"])
    return found


def _primary_rows(results: "Results", trial_id: str, split: str, arm: str | None = None) -> pd.DataFrame:
    """The summary's rows of a trial on the primary metric against the control of the selection."""
    analysis, table = results.sweep["analysis"], results.summary
    chosen = (table["trial_id"] == trial_id) & (table["split"] == split)
    chosen &= (table["metric"] == analysis["primary"]) & (table["control"] == analysis["control"])
    return table[chosen if arm is None else chosen & (table["arm"] == arm)]


def _primary(results: "Results", trial_id: str, split: str, prefix: str) -> dict[str, Any]:
    """The contrast that a trial is judged by; nothing on a split on which it was not generated."""
    rows = _primary_rows(results, trial_id, split, arm := own_arm(results, trial_id))
    if rows.empty:
        return {}
    row = rows.iloc[0].to_dict()
    p_value = row["p_value"] if pd.isna(row["p_adjusted"]) else row["p_adjusted"]
    row["p_adjusted"] = p_value
    numbers = {f"{prefix}/{part}": row[column] for column, part in CONTRAST_COLUMNS.items()}
    words = {
        f"{prefix}/verdict": row["verdict"],
        f"{prefix}/arm": arm,
        f"{prefix}/control": row["control"],
        f"{prefix}/reason": row["reason"],
    }
    return numbers | words


def _contrasts(results: "Results", trial_id: str | None = None) -> list[dict[str, Any]]:
    """The summary's rows with the axes of their trials in front."""
    table = results.with_axes(results.summary).rename(columns=flat_names(results.axes))
    return _records(table if trial_id is None else table[table["trial_id"] == trial_id])


class _Images:
    """The images that runs show: the first (prompt, seed) of the sweep, in its order, whatever the run."""

    def __init__(self, results: "Results", limit: int) -> None:
        sweep = self.sweep = results.sweep
        self.results = results
        primary = sweep["analysis"]["primary"]
        scores = results.scores.loc[results.scores["metric"] == primary, ["image_id", "value"]]
        table = results.images.merge(scores, on="image_id", how="left")
        keys = zip(table["arm_id"], table["prompt"], table["seed"], strict=True)
        self.found: dict[Any, dict[Any, Any]] = dict(zip(keys, table.to_dict("records"), strict=True))
        self.cells = {
            split: [
                (prompt["text"], seed)
                for prompt in sweep["prompts"]
                if prompt["split"] == split
                for seed in sweep["seeds"]
            ][:limit]
            for split in ("dev", "test")
        }

    def of_trial(self, trial_id: str, *, selected: bool) -> dict[str, tuple[Shown, ...]]:
        """The trial's own arms, and beside them the control that it is selected against."""
        arms = self.results.arms[self.results.arms["trial_id"] == trial_id]
        own = arms[~arms["is_control"].astype(bool)]
        drawn = own["arm_id"].isin([arm_id for arm_id, _, _ in self.found])
        if not drawn.any():
            return {}
        control = arms[arms["arm"] == self.sweep["analysis"]["control"]]
        found: dict[str, tuple[Shown, ...]] = {}
        for row in [*control.to_dict("records"), *own.to_dict("records")]:
            found |= self.of_arm(row["arm"], row["arm_id"], test=selected)
        return found

    def of_arm(self, arm: str, arm_id: str, *, test: bool = True) -> dict[str, tuple[Shown, ...]]:
        """`images/ARM` of dev prompts, and `test_images/ARM` where the arm was generated on those."""
        found = {}
        for split, key in (("dev", DEV_IMAGES), ("test", TEST_IMAGES)):
            shown = tuple(self._shown(arm, arm_id, *cell) for cell in self.cells[split])
            if any(image.path for image in shown) and (test or split == "dev"):
                found[f"{key}/{arm}"] = shown
        return found

    def _shown(self, arm: str, arm_id: str, prompt: str, seed: int) -> Shown:
        row = self.found.get((arm_id, prompt, seed))
        caption = f"{one_line(prompt, 1000)} · seed {seed} · {arm}"
        if row is None:
            return Shown(path=None, sha256=None, caption=f"{caption}: no image")
        value = "–" if pd.isna(row["value"]) else format(row["value"], ".2f")
        caption += f" · {self.sweep['analysis']['primary']} {value}"
        return Shown(path=row["path"], sha256=row["sha256"], caption=caption)


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
