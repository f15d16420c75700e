"""Pairs: two images of the same prompt and seed, drawn by two arms from the same latents.

Shape legend: D draws, M metrics, C cells (prompt × seed), K contrasts (trial × arm against one control).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from harness.errors import ArtifactError

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]


@dataclass(frozen=True, kw_only=True)
class Grid:
    """All scores of a sweep as one dense block, so that pairing is subtraction.

    A cell is a prompt and seed of which any draw has an image. Cells are in the order of split, prompt id
    and seed, whatever the order of the images: statistics that draw random numbers then do not depend on
    which worker finished first.
    """

    images: pd.DataFrame
    scores: pd.DataFrame
    metrics: tuple[str, ...]
    arms: pd.Index  # [D]
    cells: pd.DataFrame  # [C] prompt_id, prompt, split, seed
    value_DMC: Floats  # NaN where there is no score
    image_DC: Ints  # row of `images`, −1 where there is no image
    latents_DC: Ints  # code of the starting latents, −1 where there is no image

    @classmethod
    def build(cls, images: pd.DataFrame, scores: pd.DataFrame, *, metrics: Sequence[str]) -> "Grid":
        """The block of these images and scores. Scores of other images or metrics are left out."""
        assert images["image_id"].is_unique, "an image stands twice in the images table"
        assert images["latent_hash"].notna().all(), "an image without the hash of its latents"
        keys = ["split", "prompt_id", "seed"]
        cells = images[[*keys, "prompt"]].drop_duplicates().sort_values(keys, ignore_index=True)
        assert not cells.duplicated(keys).any(), "one prompt id stands for two prompts"
        arms = pd.Index(images["arm_id"].unique())
        arm = arms.get_indexer(pd.Index(images["arm_id"]))
        cell = pd.MultiIndex.from_frame(cells[keys]).get_indexer(pd.MultiIndex.from_frame(images[keys]))
        image_DC = np.full((len(arms), len(cells)), -1)
        image_DC[arm, cell] = np.arange(len(images))
        assert (image_DC >= 0).sum() == len(images), "a draw has two images of one prompt and seed"
        latents_DC = np.full(image_DC.shape, -1)
        latents_DC[arm, cell] = pd.factorize(images["latent_hash"])[0]

        image = pd.Index(images["image_id"]).get_indexer(pd.Index(scores["image_id"]))
        metric = pd.Index(list(metrics)).get_indexer(pd.Index(scores["metric"]))
        known = (image >= 0) & (metric >= 0)
        value_DMC = np.full((len(arms), len(metrics), len(cells)), np.nan)
        value_DMC[arm[image[known]], metric[known], cell[image[known]]] = scores["value"].to_numpy(
            dtype=float, na_value=np.nan
        )[known]
        return cls(
            images=images,
            scores=scores,
            metrics=tuple(metrics),
            arms=arms,
            cells=cells,
            value_DMC=value_DMC,
            image_DC=image_DC,
            latents_DC=latents_DC,
        )

    def rows(self, arm_ids: pd.Series) -> Ints:
        """Row of each draw in the block; −1 for one without images."""
        return np.asarray(self.arms.get_indexer(pd.Index(arm_ids)))

    def values(self, rows_K: Ints, cells_C: Ints) -> Floats:
        """Scores [K, M, C] of some draws on some cells; NaN for a draw without images."""
        return _take(self.value_DMC[:, :, cells_C], rows_K, np.nan)

    def image_rows(self, rows_K: Ints, cells_C: Ints) -> Ints:
        """Rows of `images` [K, C]; −1 where there is no image."""
        return _take(self.image_DC[:, cells_C], rows_K, -1)

    def noises(self, cells_C: Ints) -> Ints:
        """The starting noise [C] of each cell, numbered from 0; all arms have the same (`check_latents`)."""
        return np.asarray(pd.factorize(self.latents_DC[:, cells_C].max(axis=0, initial=-1))[0])

    def check_latents(self, arm_K: Ints, control_K: Ints, cells_C: Ints) -> None:
        """Raises ArtifactError where the two images of a pair did not start from the same latents."""
        arm_KC, control_KC = (_take(self.latents_DC[:, cells_C], rows, -1) for rows in (arm_K, control_K))
        differs_KC = (arm_KC >= 0) & (control_KC >= 0) & (arm_KC != control_KC)
        if not differs_KC.any():
            return
        contrast, cell = np.argwhere(differs_KC)[0]
        where = self.cells.iloc[cells_C[cell]]
        arm, control = (self.arms[rows[contrast]] for rows in (arm_K, control_K))
        raise ArtifactError(
            f"prompt {where['prompt']!r}, seed {where['seed']}: draws {arm} and {control} did not start from "
            f"the same latents, so their images are no pair; delete images/{arm} and images/{control} in "
            "the workspace and run `harness run` again"
        )


def contrasts(
    trials: pd.DataFrame, arms: pd.DataFrame, *, names: Sequence[str], control: str
) -> pd.DataFrame:
    """Every trial × arm with the draw of its control, in order of trial, then of `arms`.

    Columns: trial_id, index, trial_reason, arm, arm_place, draw_arm, draw_control.
    """
    order = {arm: place for place, arm in enumerate(names)}
    of_arms = arms[arms["arm"].isin(names)].rename(columns={"arm_id": "draw_arm"})
    of_control = arms.loc[arms["arm"] == control, ["trial_id", "arm_id"]].rename(
        columns={"arm_id": "draw_control"}
    )
    frame = trials[["trial_id", "index", "reason"]].rename(columns={"reason": "trial_reason"})
    frame = frame.merge(of_arms, on="trial_id").merge(of_control, on="trial_id", validate="many_to_one")
    frame = frame.assign(arm_place=frame["arm"].map(order))
    return frame.sort_values(["index", "arm_place"], ignore_index=True)


def split_cells(grid: Grid, split: str) -> Ints:
    """Cells [C] of one split."""
    return np.flatnonzero(grid.cells["split"].to_numpy() == split)


def expected(grid: Grid, arm_K: Ints, cells_C: Ints, split: str) -> NDArray[np.bool_]:
    """Which contrasts [K] a split owes.

    All of them on dev; on test those with an image, because only the selected trial is drawn there.
    """
    if split == "dev":
        return np.ones(len(arm_K), dtype=bool)
    drawn: NDArray[np.bool_] = np.any(grid.image_rows(arm_K, cells_C) >= 0, axis=1)
    return drawn


def pairs_table(
    grid: Grid,
    trials: pd.DataFrame,
    arms: pd.DataFrame,
    *,
    names: Sequence[str],
    control: str,
    split: str | None,
) -> pd.DataFrame:
    """The rows of `Results.pairs`."""
    frame = contrasts(trials, arms, names=names, control=control)
    parts = [_pairs_of_split(grid, frame, control, name) for name in ("dev", "test") if split in (None, name)]
    return pd.concat(parts, ignore_index=True)


def _pairs_of_split(grid: Grid, frame: pd.DataFrame, control: str, split: str) -> pd.DataFrame:
    cells_C = split_cells(grid, split)
    keep = expected(grid, grid.rows(frame["draw_arm"]), cells_C, split)
    frame = frame[keep].reset_index(drop=True)
    arm_K, control_K = grid.rows(frame["draw_arm"]), grid.rows(frame["draw_control"])
    grid.check_latents(arm_K, control_K, cells_C)

    k, c, m = (axis.ravel() for axis in np.indices((len(frame), len(cells_C), len(grid.metrics))))
    cells = grid.cells.iloc[cells_C[c]].reset_index(drop=True)
    contrast = frame.iloc[k].reset_index(drop=True)
    metric = pd.Series(np.array(grid.metrics, dtype=object)[m], dtype="str")
    arm, ctrl = (side(grid, rows_K, cells_C, (k, m, c)) for rows_K in (arm_K, control_K))
    return pd.DataFrame(
        {
            "trial_id": contrast["trial_id"],
            "arm": contrast["arm"],
            "control": pd.Series(control, index=contrast.index, dtype="str"),
            "prompt_id": cells["prompt_id"],
            "prompt": cells["prompt"],
            "split": cells["split"],
            "seed": cells["seed"],
            "metric": metric,
            "value_arm": arm["value"],
            "value_control": ctrl["value"],
            "difference": arm["value"] - ctrl["value"],
            "image_id_arm": arm["image_id"],
            "image_id_control": ctrl["image_id"],
            "path_arm": arm["path"],
            "path_control": ctrl["path"],
            "reason": missing_reasons(grid, arm, ctrl, metric=metric, trial_reason=contrast["trial_reason"]),
        }
    )


def missing_reasons(
    grid: Grid, arm: pd.DataFrame, control: pd.DataFrame, *, metric: pd.Series, trial_reason: pd.Series
) -> pd.Series:
    """Why a pair has no difference, null where it has one. Each side names its own reason."""
    reasons = pd.Series(None, index=arm.index, dtype="str")
    missing = arm["value"].isna() | control["value"].isna()
    if not missing.any():
        return reasons
    given = grid.scores.set_index(["image_id", "metric"])["reason"].dropna()
    of_arm = _side_reasons(
        "arm", arm[missing], given, metric=metric[missing], trial_reason=trial_reason[missing]
    )
    none = pd.Series(None, index=of_arm.index, dtype="str")
    of_control = _side_reasons("control", control[missing], given, metric=metric[missing], trial_reason=none)
    both = of_arm.str.cat(of_control, sep="; ")  # null where either is
    reasons[missing] = both.fillna(of_arm).fillna(of_control)
    return reasons


def _side_reasons(
    name: str, values: pd.DataFrame, given: pd.Series, *, metric: pd.Series, trial_reason: pd.Series
) -> pd.Series:
    scored = given.reindex(pd.MultiIndex.from_arrays([values["image_id"], metric])).set_axis(values.index)
    undrawn = "no image" + (" (" + trial_reason + ")").fillna("")
    text = name + ": " + scored.fillna("not scored").where(values["image_id"].notna(), undrawn)
    return text.where(values["value"].isna())


def side(grid: Grid, rows_K: Ints, cells_C: Ints, at: tuple[Ints, Ints, Ints]) -> pd.DataFrame:
    """value, image_id and path of one side of the pairs at (contrast, metric, cell)."""
    k, m, c = at
    image = grid.image_rows(rows_K, cells_C)[k, c]
    found = grid.images[["image_id", "path"]].reset_index(drop=True).reindex(image).reset_index(drop=True)
    return found.assign(value=grid.values(rows_K, cells_C)[k, m, c])


def _take(block: NDArray[Any], rows_K: Ints, missing: float) -> NDArray[Any]:
    """Rows of a block along its first axis; row −1 is filled with `missing`."""
    padded = np.concatenate([block, np.full((1, *block.shape[1:]), missing, dtype=block.dtype)])
    return padded[rows_K]  # −1 is the row just added
