"""The summary of a sweep: what each trial's arms do against each control, and which trial is best.

Select on dev prompts, believe test prompts: the best of many trials looks better than it is on the prompts it
was selected on (with 24 trials that do nothing, by about 1.95 standard errors). The adjusted p covers the
comparisons of a grid; it does not undo that selection.

Shape legend: K contrasts (trial × arm), M metrics, C cells (prompt × seed), N prompts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from harness.config.schema.evaluation import AnalysisConfig
from harness.config.schema.metric import MetricConfig
from harness.errors import ConfigError
from harness.results.inference import estimate_crossed, estimate_prompts, max_t_p, too_few
from harness.results.pairing import (
    Floats,
    Grid,
    Ints,
    contrasts,
    expected,
    missing_reasons,
    side,
    split_cells,
)
from harness.results.tables import SUMMARY, typed

NOISES_FOR_A_VERDICT = 8  # starting noises that all prompts share; a two-way interval covers 95 % from 4 on


def summarise(
    trials: pd.DataFrame,
    arms: pd.DataFrame,
    images: pd.DataFrame,
    scores: pd.DataFrame,
    *,
    analysis: AnalysisConfig,
    metrics: Sequence[MetricConfig],
) -> pd.DataFrame:
    """The summary table: one row per trial × arm × control × metric × split, in that nesting.

    Arms are those in which a trial's own adapter acts, controls the others. The estimate is the mean over
    prompts of each prompt's mean difference over its seeds, so every prompt weighs the same however many of
    its pairs are missing; `mean_arm` and `mean_control` are the same mean of means over the same pairs.
    Interval and p: `harness.results.inference`. `p_adjusted` corrects over all trials × arms of (control,
    metric, split). `win_rate` is the share of pairs in which the arm is better (for a metric without a better
    direction: higher), ties counting one half.

    On dev every trial has its rows; on test those with images. A number that does not exist is null, and
    `reason` says why: no pairs, too few prompts for an interval, or the same difference on every prompt.
    Raises ArtifactError where the images of a pair did not start from the same latents.
    """
    grid = Grid.build(images, scores, metrics=[metric.kind for metric in metrics])
    is_control = arms.drop_duplicates("arm").set_index("arm")["is_control"].astype(bool)
    names, controls = list(is_control.index[~is_control]), list(is_control.index[is_control])
    frames = []
    for place, control in enumerate(controls):
        frame = contrasts(trials, arms, names=names, control=control)
        for split in ("dev", "test"):
            rows = _summarise_split(grid, frame, split, analysis=analysis, metrics=metrics)
            frames.append(rows.assign(control=control, control_place=place))
    if not frames:
        return typed(pd.DataFrame(), SUMMARY)
    table = pd.concat(frames, ignore_index=True)
    nesting = ["index", "arm_place", "control_place", "metric_place", "split"]
    return typed(table.sort_values(nesting)[SUMMARY.names], SUMMARY)


def mean_difference(
    images: pd.DataFrame, scores: pd.DataFrame, *, own: str, control: str, metric: str
) -> float | None:
    """One draw − another on a metric: the mean over prompts of each prompt's mean difference over its seeds.

    Null where they have no pair with both scores. Raises ArtifactError where the images of a pair did not
    start from the same latents.
    """
    grid = Grid.build(images, scores, metrics=[metric])
    cells_C = np.arange(len(grid.cells))
    arm_K, control_K = (grid.rows(pd.Series([arm])) for arm in (own, control))
    grid.check_latents(arm_K, control_K, cells_C)
    means = prompt_means(
        grid.values(arm_K, cells_C)[:, 0],
        grid.values(control_K, cells_C)[:, 0],
        pd.factorize(grid.cells["prompt_id"])[0],
        sign_K=np.ones(1),
    )
    found = float(_mean_of_prompts(means.difference_NK)[0])
    return found if np.isfinite(found) else None


def select_best(summary: pd.DataFrame, analysis: AnalysisConfig) -> str | None:
    """The trial that is best on dev prompts: primary metric, mean difference to `analysis.control`.

    Where several arms use a trial's adapter, its best arm counts. The first trial wins a tie. Null where no
    trial has a difference. Raises ConfigError where the primary metric has no better direction.
    """
    rows = summary[(summary["metric"] == analysis.primary) & (summary["split"] == "dev")]
    if rows["higher_is_better"].isna().any():
        directed = summary.loc[summary["higher_is_better"].notna(), "metric"].unique()
        raise ConfigError(
            f"analysis.primary {analysis.primary!r} has no better direction, so it cannot select a trial; "
            f"allowed: {', '.join(directed) or 'clip_score or aesthetic, once they are among the metrics'}"
        )
    rows = rows[(rows["control"] == analysis.control) & rows["mean_difference"].notna()]
    if rows.empty:
        return None
    gain = rows["mean_difference"].where(rows["higher_is_better"].astype(bool), -rows["mean_difference"])
    return str(rows["trial_id"].iloc[int(gain.to_numpy(dtype=float).argmax())])


@dataclass(frozen=True, kw_only=True)
class PromptMeans:
    """Means over the complete pairs of each prompt, and counts."""

    difference_NK: Floats  # NaN where a prompt has no complete pair
    arm_NK: Floats
    control_NK: Floats
    pairs_NK: Floats  # complete pairs
    wins_K: Floats  # ties count one half


def prompt_means(arm_KC: Floats, control_KC: Floats, prompt_C: Ints, *, sign_K: Floats) -> PromptMeans:
    """Collapse pairs to prompts.

    `prompt_C` numbers the prompt of each cell from 0; `sign_K` is −1 where lower wins.
    """
    difference_KC = arm_KC - control_KC
    complete_KC = np.isfinite(difference_KC)
    member_CN = np.eye(prompt_C.max(initial=-1) + 1)[prompt_C]
    pairs_NK = (complete_KC @ member_CN).T

    def mean(values_KC: Floats) -> Floats:
        with np.errstate(invalid="ignore"):  # 0 / 0 is the NaN of a prompt without pairs
            return (np.where(complete_KC, values_KC, 0.0) @ member_CN).T / pairs_NK

    signed_KC = np.where(complete_KC, np.sign(difference_KC) * sign_K[:, None], -1.0)
    return PromptMeans(
        difference_NK=mean(difference_KC),
        arm_NK=mean(arm_KC),
        control_NK=mean(control_KC),
        pairs_NK=pairs_NK,
        wins_K=((signed_KC + 1) / 2).sum(axis=1),
    )


def infer(difference_NK: Floats, analysis: AnalysisConfig, shared_NSK: Floats | None = None) -> pd.DataFrame:
    """ci_low, ci_high, p_value and reason of each contrast, from prompt-level differences (NaN: no pairs).

    `shared_NSK` holds the differences by starting noise where all prompts meet the same S noises: these are
    then a second random factor, the interval is two-way, and below 8 noises there is no p.
    """
    if shared_NSK is None:
        estimates = estimate_prompts(difference_NK, patterns=analysis.resamples, seed=analysis.seed)
    elif shared_NSK.shape[1] == 1:
        reason = "all prompts share one starting noise: no interval and no p"
        columns = dict.fromkeys(("ci_low", "ci_high", "p_value"), np.full(difference_NK.shape[1], np.nan))
        return pd.DataFrame(columns).assign(reason=reason)
    else:
        estimates = estimate_crossed(shared_NSK, factor="noise")
    found = pd.DataFrame({"p_value": estimates.p_K, "reason": pd.Series(estimates.reason_K, dtype="str")})
    found["ci_low"], found["ci_high"] = estimates.interval(analysis.confidence)
    for k in np.flatnonzero(found["reason"].isna()):
        if too_few(prompts := int(estimates.prompts_K[k]), analysis.confidence):
            found.loc[k, ["ci_low", "ci_high"]] = np.nan
            found.loc[k, "reason"] = (
                f"{prompts} prompts are too few for a {100 * analysis.confidence:g} % interval"
            )
    if shared_NSK is not None and (noises := shared_NSK.shape[1]) < NOISES_FOR_A_VERDICT:
        found["p_value"] = np.nan
        reason = f"prompts share {noises} starting noises: no verdict below {NOISES_FOR_A_VERDICT}"
        found["reason"] = found["reason"].fillna(reason)
    return found


def _shared_noises(difference_KC: Floats, prompt_C: Ints, noise_C: Ints) -> Floats | None:
    """Differences [N, S, K] by prompt and starting noise; None where no two prompts share a noise."""
    prompts_of_noise = (
        pd.DataFrame({"noise": noise_C, "prompt": prompt_C}).groupby("noise")["prompt"].nunique()
    )
    if not (prompts_of_noise > 1).any():
        return None
    shape = (prompt_C.max() + 1, noise_C.max() + 1, len(difference_KC))
    block_NSK = np.full(shape, np.nan)
    block_NSK[prompt_C, noise_C] = difference_KC.T
    return block_NSK


def _summarise_split(
    grid: Grid, frame: pd.DataFrame, split: str, *, analysis: AnalysisConfig, metrics: Sequence[MetricConfig]
) -> pd.DataFrame:
    """Rows of all contrasts with one control on one split, metrics nested in contrasts."""
    cells_C = split_cells(grid, split)
    frame = frame[expected(grid, grid.rows(frame["draw_arm"]), cells_C, split)].reset_index(drop=True)
    arm_K, control_K = grid.rows(frame["draw_arm"]), grid.rows(frame["draw_control"])
    grid.check_latents(arm_K, control_K, cells_C)

    # From here on a contrast is trial × arm × metric.
    flat = (len(frame) * len(metrics), len(cells_C))
    k, m = (axis.ravel() for axis in np.indices((len(frame), len(metrics))))
    better = [metric.higher_is_better for metric in metrics]
    arm_KC = grid.values(arm_K, cells_C).reshape(flat)
    control_KC = grid.values(control_K, cells_C).reshape(flat)
    prompt_C = pd.factorize(grid.cells["prompt_id"].to_numpy()[cells_C])[0]
    means = prompt_means(
        arm_KC,
        control_KC,
        prompt_C,
        sign_K=np.array([-1.0 if direction is False else 1.0 for direction in better])[m],
    )
    pairs_K = means.pairs_NK.sum(axis=0)
    shared_NSK = _shared_noises(arm_KC - control_KC, prompt_C, grid.noises(cells_C))
    inferred = infer(means.difference_NK, analysis, shared_NSK)
    adjusted_K = np.full(len(k), np.nan)
    if shared_NSK is None:
        for metric in range(len(metrics)):
            family = means.difference_NK[:, m == metric]
            adjusted_K[m == metric] = max_t_p(family, patterns=analysis.resamples, seed=analysis.seed)
        adjusted_K[inferred["p_value"].isna()] = np.nan
    at = (k, m, np.zeros_like(k))
    unpaired = _no_pairs(grid, arm_K, control_K, cells_C, at, frame["trial_reason"])
    return pd.DataFrame(
        {
            "trial_id": frame["trial_id"].to_numpy()[k],
            "index": frame["index"].to_numpy()[k],
            "arm": frame["arm"].to_numpy()[k],
            "arm_place": frame["arm_place"].to_numpy()[k],
            "metric": np.array([metric.kind for metric in metrics], dtype=object)[m],
            "metric_place": m,
            "split": split,
            "n_prompts": (means.pairs_NK > 0).sum(axis=0),
            "n_pairs": pairs_K.astype(int),
            "n_missing": len(cells_C) - pairs_K.astype(int),
            "mean_arm": _mean_of_prompts(means.arm_NK),
            "mean_control": _mean_of_prompts(means.control_NK),
            "mean_difference": _mean_of_prompts(means.difference_NK),
            "ci_low": inferred["ci_low"],
            "ci_high": inferred["ci_high"],
            "confidence": analysis.confidence,
            "p_value": inferred["p_value"],
            "p_adjusted": adjusted_K,
            "win_rate": np.divide(means.wins_K, pairs_K, out=np.full(len(k), np.nan), where=pairs_K > 0),
            "higher_is_better": pd.Series([better[metric] for metric in m], dtype="boolean"),
            "reason": inferred["reason"].where(pairs_K > 0, unpaired),
        }
    )


def _mean_of_prompts(means_NK: Floats) -> Floats:
    """Mean over the prompts that have one; NaN where none has."""
    present = np.isfinite(means_NK)
    count = present.sum(axis=0)
    total = np.where(present, means_NK, 0.0).sum(axis=0)
    means: Floats = np.divide(total, count, out=np.full(len(count), np.nan), where=count > 0)
    return means


def _no_pairs(
    grid: Grid,
    arm_K: Ints,
    control_K: Ints,
    cells_C: Ints,
    at: tuple[Ints, Ints, Ints],
    trial_reason: pd.Series,
) -> pd.Series:
    """Why a contrast would have no pair at all, told by its first cell."""
    if len(cells_C) == 0:
        return pd.Series("no pairs: there are no images", index=range(len(at[0])), dtype="str")
    sides: list[Any] = [side(grid, rows_K, cells_C, at) for rows_K in (arm_K, control_K)]
    metric = pd.Series(np.array(grid.metrics, dtype=object)[at[1]], dtype="str")
    reasons = missing_reasons(
        grid, sides[0], sides[1], metric=metric, trial_reason=trial_reason.iloc[at[0]].reset_index(drop=True)
    )
    return "no pairs: " + reasons
