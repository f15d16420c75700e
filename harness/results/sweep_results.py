"""A finished sweep, opened for reading."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import pandas as pd
from PIL import Image

from harness.errors import ConfigError, WorkspaceError
from harness.results import tables
from harness.results.pairing import Grid, pairs_table
from harness.store.training_record import RECORD, TrainingRecord
from harness.store.workspace import Workspace


@dataclass(frozen=True, kw_only=True, eq=False)  # frames have no one answer to ==
class Results:
    """The tables of a sweep (their columns: `columns`), and `sweep`.

    `sweep` is its specification with versions, host and time. Paths are relative to the workspace.
    """

    trials: pd.DataFrame
    arms: pd.DataFrame
    images: pd.DataFrame
    scores: pd.DataFrame
    summary: pd.DataFrame
    sweep: dict[str, Any]
    workspace: Workspace | None = None  # where images and adapters are; None: of tables alone

    @classmethod
    def read(cls, folder: Path, workspace: Workspace | None = None) -> Self:
        """What `tables.write` wrote; the summary has the axes of its trials as columns, too.

        Raises ArtifactError where it is not that any more.
        """
        sweep = tables.read_sweep(folder)
        tables.check(folder)
        frames = {
            name: tables.read_table(folder / tables.table_file(name), schema)
            for name, schema in tables.SCHEMAS.items()
        }
        results = cls(sweep=sweep, workspace=workspace, **frames)
        frames["summary"] = results.with_axes(results.summary)
        return cls(sweep=sweep, workspace=workspace, **frames)

    @property
    def axes(self) -> list[str]:
        """Dotted names of the axes, as the trials have columns of them."""
        return [str(name) for name in self.trials.columns if name not in tables.TRIALS.names]

    def with_axes(self, frame: pd.DataFrame) -> pd.DataFrame:
        """A frame that has a `trial_id`, with the axes of its trials behind it."""
        absent = [axis for axis in self.axes if axis not in frame.columns]
        if not absent:
            return frame
        found = self.trials.set_index("trial_id")[absent].reindex(frame["trial_id"]).set_index(frame.index)
        at = list(frame.columns).index("trial_id") + 1
        return pd.concat([frame.iloc[:, :at], found, frame.iloc[:, at:]], axis=1)

    def pairs(
        self, *, control: str | None = None, arm: str | None = None, split: str | None = None
    ) -> pd.DataFrame:
        """One row per (trial, arm, prompt, seed, metric): two images generated from the same latents.

        `control` may be any arm; None: the sweep's `analysis.control`. `arm` None: every other arm in which
        the trial's own adapter acts. `split` None: dev and test. Columns: trial_id, the axes, arm, control,
        prompt_id, prompt, split, seed, metric, value_arm, value_control, difference (arm − control),
        image_id_arm, image_id_control, path_arm, path_control, reason (why there is no difference, else
        null). A control that all trials share recurs for each.

        Raises ConfigError for an unknown name, ArtifactError if the images of a pair did not start from the
        same latents.
        """
        control = control or str(self.sweep["analysis"]["control"])
        arms = list(dict.fromkeys(self.arms["arm"]))
        _check("control", control, arms)
        _check("arm", arm, [None, *(name for name in arms if name != control)])
        _check("split", split, [None, "dev", "test"])
        own = list(dict.fromkeys(self.arms.loc[~self.arms["is_control"], "arm"]))
        chosen = [name for name in own if name != control] if arm is None else [arm]
        grid = Grid.build(
            self.images, self.scores, metrics=[metric["name"] for metric in self.sweep["metrics"]]
        )
        found = pairs_table(grid, self.trials, self.arms, names=chosen, control=control, split=split)
        return self.with_axes(found)

    def cells(self, *, metric: str | None = None) -> pd.DataFrame:
        """One row per trial × arm × image on one metric (None: the primary): a control recurs for each trial.

        Columns: trial_id, the axes, arm, is_control, arm_id, image_id, prompt_id, prompt, split, seed,
        latent_hash, value (None if there is no score). Raises ConfigError for another metric.
        """
        metric = metric or str(self.sweep["analysis"]["primary"])
        _check("metric", metric, [known["name"] for known in self.sweep["metrics"]])
        columns = ["arm_id", "image_id", "prompt_id", "prompt", "split", "seed", "latent_hash", metric]
        images = self.wide()[columns].rename(columns={metric: "value"})
        table = self.arms[["trial_id", "arm", "is_control", "arm_id"]].merge(images, on="arm_id")
        return self.with_axes(table)

    def wide(self) -> pd.DataFrame:
        """One row per image: the columns of `images`, then one per metric (None if not scored)."""
        metrics = [metric["name"] for metric in self.sweep["metrics"]]
        values = self.scores.pivot(index="image_id", columns="metric", values="value").reindex(
            columns=metrics
        )
        return self.images.join(values.rename_axis(columns=None), on="image_id")

    @cached_property
    def losses(self) -> pd.DataFrame:
        """One row per training run and step: run_id, step, loss, validation_loss (null between checkpoints).

        As far as the last checkpoint that a trial of the run asks for, or that there is. Raises
        WorkspaceError for tables without a workspace, ArtifactError where a record is damaged.
        """
        store = self._store()
        parts = []
        for run_id in dict.fromkeys(self.trials["run_id"].dropna()):
            checkpoints = store.checkpoints(run_id)
            if checkpoints:
                record = TrainingRecord.parse(checkpoints[max(checkpoints)].read(RECORD))
                part = pd.DataFrame({"step": range(1, record.step + 1), "loss": record.losses})
                held_out = part["step"].map(record.validation or {}).astype("float64")
                parts.append(part.assign(validation_loss=held_out).assign(run_id=run_id))
        columns = ["run_id", "step", "loss", "validation_loss"]
        return pd.concat(parts, ignore_index=True)[columns] if parts else pd.DataFrame(columns=columns)

    def path(self, image_id: str) -> Path:
        """The file of an image on this machine; from a bucket it is fetched.

        Raises ConfigError for an unknown image, WorkspaceError where its file is gone.
        """
        paths = self.images.loc[self.images["image_id"] == image_id, "path"]
        if paths.empty:
            raise ConfigError(f"no image {image_id!r} in this sweep; take one from the column image_id")
        found = self._store().file(paths.iloc[0])
        if not found.is_file():
            raise WorkspaceError(
                f"{paths.iloc[0]} is gone from the workspace; run `harness run` to make it again"
            )
        return found

    def image(self, image_id: str) -> Image.Image:
        """An image as RGB. Raises as `path` does, and WorkspaceError where it cannot be read."""
        file = self.path(image_id)
        try:
            with Image.open(file) as opened:
                return opened.convert("RGB")
        except OSError as error:
            raise WorkspaceError(f"{file} cannot be read as an image: {error}") from None

    def _store(self) -> Workspace:
        if self.workspace is None:
            raise WorkspaceError(
                "these tables know no workspace; open the sweep with results.load(WORKSPACE/sweeps/NAME)"
            )
        return self.workspace


def _check(what: str, value: str | None, allowed: list[Any]) -> None:
    if value not in allowed:
        names = ", ".join(str(name) for name in allowed if name is not None)
        raise ConfigError(f"{what} {value!r} is not in this sweep; allowed: {names}")
