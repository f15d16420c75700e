"""A finished sweep, opened for reading."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from harness.errors import ConfigError
from harness.results import tables
from harness.results.pairing import Grid, pairs_table


@dataclass(frozen=True, kw_only=True)
class Results:
    """The tables of a sweep (their columns: `harness.results.tables`), and `sweep`.

    `sweep` is its specification with versions, host and time. Paths are relative to the workspace.
    """

    trials: pd.DataFrame
    arms: pd.DataFrame
    images: pd.DataFrame
    scores: pd.DataFrame
    summary: pd.DataFrame
    sweep: dict[str, Any]

    @classmethod
    def read(cls, folder: Path) -> "Results":
        """What `tables.write` wrote. Raises ArtifactError where it is not that any more."""
        sweep = tables.read_sweep(folder)
        tables.check(folder)
        frames = {
            name: tables.read_table(folder / tables.table_file(name), schema)
            for name, schema in tables.SCHEMAS.items()
        }
        return cls(sweep=sweep, **frames)

    def pairs(self, *, control: str, arm: str | None = None, split: str | None = None) -> pd.DataFrame:
        """One row per (trial, arm, prompt, seed, metric): two images drawn from the same latents.

        `control` may be any arm. `arm` null: every other arm in which the trial's own adapter acts. `split`
        null: dev and test. Columns: trial_id, arm, control, prompt_id, prompt, split, seed, metric,
        value_arm, value_control, difference (arm − control), image_id_arm, image_id_control, path_arm,
        path_control, reason (why there is no difference, else null). A control that all trials share recurs
        for each.

        Raises ConfigError for an unknown name, ArtifactError if the images of a pair did not start from the
        same latents.
        """
        arms = list(dict.fromkeys(self.arms["arm"]))
        _check("control", control, arms)
        _check("arm", arm, [None, *(name for name in arms if name != control)])
        _check("split", split, [None, "dev", "test"])
        own = list(dict.fromkeys(self.arms.loc[~self.arms["is_control"], "arm"]))
        chosen = [name for name in own if name != control] if arm is None else [arm]
        grid = Grid.build(
            self.images, self.scores, metrics=[metric["kind"] for metric in self.sweep["metrics"]]
        )
        return pairs_table(grid, self.trials, self.arms, names=chosen, control=control, split=split)

    def wide(self) -> pd.DataFrame:
        """One row per image: the columns of `images`, then one per metric (null where not scored)."""
        metrics = [metric["kind"] for metric in self.sweep["metrics"]]
        values = self.scores.pivot(index="image_id", columns="metric", values="value").reindex(
            columns=metrics
        )
        return self.images.join(values.rename_axis(columns=None), on="image_id")


def _check(what: str, value: str | None, allowed: list[Any]) -> None:
    if value not in allowed:
        names = ", ".join(str(name) for name in allowed if name is not None)
        raise ConfigError(f"{what} {value!r} is not in this sweep; allowed: {names}")
