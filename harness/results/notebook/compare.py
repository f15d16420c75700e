"""One's own comparisons with the report's statistics: of settings, of arms, of sweeps, of any differences.

Shape legend: K groups, C cells (prompt × starting noise).
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from harness.config.schema.evaluation import AnalysisConfig
from harness.config.schema.metric import MetricConfig, metric_of
from harness.errors import ArtifactError, ConfigError
from harness.results.summary import Cells, contrast_rows, estimated
from harness.results.summary import infer as numbers_of

if TYPE_CHECKING:
    from harness.results.sweep_results import Results

CELL = ["split", "prompt_id", "prompt", "seed"]
DEFAULTS = AnalysisConfig()


def infer(
    frame: pd.DataFrame,
    *,
    unit: str = "prompt_id",
    by: Sequence[str] = (),
    value: str = "difference",
    analysis: AnalysisConfig = DEFAULTS,
) -> pd.DataFrame:
    """Mean, interval and p of differences, a row for each value of `by`, by the report's statistics.

    `frame` holds a difference per row, as `Results.pairs()` does; rows of one `unit` are not independent and
    enter as their mean. Where prompts share starting noises (column `latent_hash`) the interval is two-way.
    Columns: `by`, n_units, n_pairs, mean_difference, ci_low, ci_high, confidence, p_value, p_adjusted (for
    the rows of the answer, max-T), reason (why a number is null). A row without a difference counts as
    missing. Raises ConfigError where the frame lacks a column.
    """
    noise = ["latent_hash"] if "latent_hash" in frame.columns else []
    _needed(frame, [*by, unit, value, *noise])
    groups = _groups(frame, by)
    block = _block(frame, groups, [unit, *noise], value)
    cells = Cells(
        arm_KC=block.to_numpy(),
        control_KC=np.zeros(block.shape),
        prompt_C=pd.factorize(block.columns.get_level_values(0))[0],
        noise_C=pd.factorize(block.columns.get_level_values(-1))[0] if noise else np.arange(block.shape[1]),
    )
    found, adjusted_K = estimated(cells, analysis)
    shown = numbers_of(found, analysis)
    return _named(frame, groups, by).assign(
        n_units=found.prompts_K,
        n_pairs=frame.groupby(groups)[value].count().to_numpy(),
        mean_difference=found.mean_K,
        ci_low=shown["ci_low"].to_numpy(),
        ci_high=shown["ci_high"].to_numpy(),
        confidence=analysis.confidence,
        p_value=shown["p_value"].to_numpy(),
        p_adjusted=np.where(shown["p_value"].isna(), np.nan, adjusted_K),
        reason=shown["reason"].to_numpy(),
    )


def compare(
    results: "Results",
    *,
    a: Mapping[str, Any],
    b: Mapping[str, Any],
    by: Sequence[str] = (),
    metric: str | None = None,
    split: str = "dev",
) -> pd.DataFrame:
    """Images of a − images of b, of the same prompt and starting noise, all other axes alike.

    `a` and `b` say what is compared, by axis, `arm`, `trial_id` (of several sweeps also `sweep`):
    `a={"adapter.rank": 8}, b={"adapter.rank": 2}` averages over all recipes and steps; `by=["recipe"]` has a
    row for each recipe. Without `arm` it is the arms with the trial's own adapter. Columns: `by`, metric,
    split, and those of the summary, with mean_a and mean_b; p_adjusted is for the rows of the answer, and
    the verdict rests on it. Nothing corrects for choosing a and b after looking: on dev prompts this is
    exploration.

    Raises ConfigError for an unknown name or value, where a side has several images for one place, and where
    no image of a has a partner; ArtifactError where partners did not start from the same latents.
    """
    analysis = AnalysisConfig.model_validate(results.sweep["analysis"])
    kind = metric or analysis.primary
    table = results.cells(metric=kind)
    chosen = metric_of(next(m for m in results.sweep["metrics"] if m["name"] == kind))
    return compared(table, results.axes, (a, b), by=by, metric=chosen, split=split, analysis=analysis)


def compared(
    table: pd.DataFrame,
    axes: Sequence[str],
    sides: tuple[Mapping[str, Any], Mapping[str, Any]],
    *,
    by: Sequence[str],
    metric: MetricConfig,
    split: str,
    analysis: AnalysisConfig,
) -> pd.DataFrame:
    """`compare` on rows of `Results.cells`."""
    if split not in ("dev", "test"):
        raise ConfigError(f"split {split!r} is not known; allowed: dev, test")
    table = table[table["split"] == split]
    said = {name for side in sides for name in side}
    within = [name for name in by if name not in axes]
    matched = [name for name in (*axes, "arm", *within) if name not in said]
    matched = list(dict.fromkeys(matched))
    left = [axis for axis in axes if axis not in said]
    for name in by:
        if name not in matched or name not in table.columns:
            raise ConfigError(
                f"by: {name!r} is no axis that a and b leave open; allowed: {', '.join(left) or 'none'}"
            )
    keys = [*matched, *CELL]
    rows_a, rows_b = (_side(table, side, name, axes) for side, name in zip(sides, "ab", strict=True))
    for rows, name in ((rows_a, "a"), (rows_b, "b")):
        _check_unique(rows, keys, axes, name)
    pairs = rows_a.merge(rows_b, on=keys, suffixes=("_a", "_b"))
    if pairs.empty:
        raise ConfigError(
            f"no image of a has a partner in b on {split}: they share no prompt, seed and value of "
            f"{', '.join(matched)}"
        )
    _check_latents(pairs)
    pairs = pairs.assign(latent_hash=pairs["latent_hash_a"].fillna(pairs["latent_hash_b"]))
    complete = pairs["value_a"].notna() & pairs["value_b"].notna()
    for side in ("value_a", "value_b"):  # a pair counts whole or not at all
        pairs[side] = pairs[side].where(complete)
    groups = _groups(pairs, by)
    blocks = [_block(pairs, groups, ["prompt_id", "latent_hash"], side) for side in ("value_a", "value_b")]
    cells = Cells(
        arm_KC=blocks[0].to_numpy(),
        control_KC=blocks[1].to_numpy(),
        prompt_C=pd.factorize(blocks[0].columns.get_level_values(0))[0],
        noise_C=pd.factorize(blocks[0].columns.get_level_values(1))[0],
    )
    values = table["value"].dropna()
    extremes = (float(values.min()), float(values.max())) if len(values) else (np.nan, np.nan)
    found = contrast_rows(cells, analysis, metric, extremes)
    found = found.rename(columns={"mean_arm": "mean_a", "mean_control": "mean_b"})
    counted = pairs.assign(complete=complete).groupby(groups)["complete"]
    found = found.assign(
        split=split,
        confidence=analysis.confidence,
        n_pairs=counted.sum().to_numpy(),
        n_missing=(counted.size() - counted.sum()).to_numpy(),
    )
    return pd.concat([_named(pairs, groups, by), found], axis=1)


def _side(table: pd.DataFrame, side: Mapping[str, Any], name: str, axes: Sequence[str]) -> pd.DataFrame:
    """The rows that a side names."""
    allowed = [*axes, "arm", "trial_id"]
    for column, value in side.items():
        if column not in allowed:
            raise ConfigError(f"{name}: {column!r} is not known; allowed: {', '.join(allowed)}")
        if value not in table[column].unique().tolist():
            there = ", ".join(map(str, list(dict.fromkeys(table[column].dropna()))[:12]))
            raise ConfigError(f"{name}: {column} has no value {value!r}; there are {there}")
        table = table[table[column] == value]
    if "arm" not in side:
        table = table[~table["is_control"].astype(bool)]
    if table.empty:
        raise ConfigError(
            f"{name}: no trial has {', '.join(f'{key} {value}' for key, value in side.items())}"
        )
    return table


def _check_unique(rows: pd.DataFrame, keys: list[str], axes: Sequence[str], name: str) -> None:
    """A control is listed for each trial that has it; it counts once where the trials are not matched."""
    twice = rows.duplicated(keys, keep=False)
    if twice.any():
        varied = [axis for axis in (*axes, "arm") if rows[twice][axis].nunique(dropna=False) > 1]
        which = ", ".join(varied) or "trial_id"
        raise ConfigError(f"{name}: several images for one prompt and seed; say which {which}, in a and in b")


def _check_latents(pairs: pd.DataFrame) -> None:
    differ = pairs["latent_hash_a"].notna() & pairs["latent_hash_b"].notna()
    differ &= pairs["latent_hash_a"] != pairs["latent_hash_b"]
    if differ.any():
        row = pairs[differ].iloc[0]
        raise ArtifactError(
            f"prompt {row['prompt']!r}, seed {row['seed']}: the images of a and b did not start from the "
            "same latents, so they are no pair"
        )


def _groups(frame: pd.DataFrame, by: Sequence[str]) -> pd.Series:
    """Number of each row's group, in the order of first appearance."""
    if not by:
        return pd.Series(0, index=frame.index)
    return frame.groupby(list(by), sort=False, dropna=False).ngroup()


def _named(frame: pd.DataFrame, groups: pd.Series, by: Sequence[str]) -> pd.DataFrame:
    """The values of `by` of each group."""
    named = frame[list(by)].assign(group=groups).drop_duplicates("group").sort_values("group")
    return named.drop(columns="group").reset_index(drop=True)


def _block(frame: pd.DataFrame, groups: pd.Series, cell: list[str], value: str) -> pd.DataFrame:
    """Means [K, C] by group and cell, cells sorted by prompt; NaN where there is none."""
    means = frame.groupby([groups.rename("group"), *(frame[name] for name in cell)], dropna=False)[
        value
    ].mean()
    block = means.unstack(cell)
    return block.sort_index(axis=1)


def _needed(frame: pd.DataFrame, columns: Sequence[str]) -> None:
    absent = [column for column in columns if column not in frame.columns]
    if absent:
        raise ConfigError(
            f"the frame has no column {absent[0]!r}; it has {', '.join(map(str, frame.columns))}"
        )
