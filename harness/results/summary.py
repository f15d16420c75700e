"""The summary of a sweep: what each trial's arms do against each control, and which trial is best.

Select on dev prompts, believe test prompts: the best of many trials looks better than it is on the prompts it
was selected on (with 24 trials that do nothing, by about 1.95 standard errors). The adjusted p covers the
comparisons of a grid; it does not undo that selection.

Shape legend: K contrasts (trial × arm), M metrics, C cells (prompt × seed), N prompts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from harness.config.schema.evaluation import AnalysisConfig
from harness.config.schema.metric import MetricConfig
from harness.errors import ConfigError
from harness.results.inference import Estimates, estimate_crossed, estimate_prompts, max_t_p, too_few
from harness.results.pairing import (
    Bools,
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
from harness.results.verdicts import (
    FEWEST_NOISES,
    Losses,
    Rule,
    decide,
    detectable,
    fill_lost,
    prompts_to_decide,
)


def summarise(
    trials: pd.DataFrame,
    arms: pd.DataFrame,
    images: pd.DataFrame,
    scores: pd.DataFrame,
    *,
    analysis: AnalysisConfig,
    metrics: Sequence[MetricConfig],
    against: Mapping[str, Sequence[str]] | None = None,
) -> pd.DataFrame:
    """The summary table: one row per trial × arm × control × metric × split, in that nesting.

    `against`: the arms that are compared with each control; None: with every control those in which a trial's
    own adapter acts. The estimate is the mean over
    prompts of each prompt's mean difference over its seeds, so every prompt weighs the same however many of
    its pairs are missing; `mean_arm` and `mean_control` are the same mean of means over the same pairs.
    Interval and p: `harness.results.inference`. `p_adjusted` corrects over all trials × arms of (control,
    metric, split). `win_rate` is the share of pairs in which the arm is better (for a metric without a better
    direction: higher), ties counting one half.

    On dev every trial has its rows; on test those with images. A number that does not exist is null, and
    `reason` says why: no pairs, too few prompts for an interval, or the same difference on every prompt.
    Raises ArtifactError where the images of a pair did not start from the same latents.
    """
    grid = Grid.build(images, scores, metrics=[metric.name for metric in metrics])
    if against is None:
        is_control = arms.drop_duplicates("arm").set_index("arm")["is_control"].astype(bool)
        own = list(is_control.index[~is_control])
        against = dict.fromkeys(is_control.index[is_control], own)
    frames = []
    for place, (control, names) in enumerate(against.items()):
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
    """One arm − another on a metric: the mean over prompts of each prompt's mean difference over its seeds.

    None if they have no pair with both scores. Raises ArtifactError where the images of a pair did not
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

    Where several arms use a trial's adapter, its best arm counts. The first trial wins a tie. None if no
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


@dataclass(frozen=True, kw_only=True)
class Cells:
    """Scores of K contrasts with one control on one metric and split, by prompt and starting noise."""

    arm_KC: Floats  # NaN where there is no score
    control_KC: Floats
    prompt_C: Ints  # the prompt of each cell, from 0
    noise_C: Ints  # its starting noise, from 0

    @property
    def shared_NSK(self) -> Floats | None:
        """Differences by prompt and starting noise; None where no two prompts share a noise."""
        return _shared_noises(self.arm_KC - self.control_KC, self.prompt_C, self.noise_C)

    @property
    def lost_KC(self) -> Bools:
        """Pairs without a difference, of contrasts that have others."""
        missing_KC: Bools = np.isnan(self.arm_KC - self.control_KC)
        return missing_KC & ~missing_KC.all(axis=1, keepdims=True)

    def filled(self, *, lowest: float, highest: float) -> tuple["Cells", "Cells"]:
        """The same with lost pairs at the lowest difference that they could have had, and at the highest."""
        low, high = fill_lost(self.arm_KC, self.control_KC, lowest=lowest, highest=highest)
        lost_KC = self.lost_KC

        def with_lost(filled: tuple[Floats, Floats]) -> Cells:
            arm_KC, control_KC = filled
            return replace(
                self,
                arm_KC=np.where(lost_KC, arm_KC, self.arm_KC),
                control_KC=np.where(lost_KC, control_KC, self.control_KC),
            )

        return with_lost(low), with_lost(high)


def estimated(cells: Cells, analysis: AnalysisConfig) -> tuple[Estimates, Floats]:
    """Estimates of K contrasts, and p [K] adjusted for all of them (NaN where noises are shared).

    Where all prompts meet the same noises these are a second random factor, and the interval is two-way.
    """
    sign_K = np.ones(len(cells.arm_KC))
    difference_NK = prompt_means(cells.arm_KC, cells.control_KC, cells.prompt_C, sign_K=sign_K).difference_NK
    patterns, seed = analysis.resamples, analysis.seed
    found = estimate_prompts(difference_NK, patterns=patterns, seed=seed)
    shared_NSK = cells.shared_NSK
    if shared_NSK is None:
        adjusted_K = max_t_p(difference_NK, patterns=patterns, seed=seed)
        return found, np.where(np.isnan(found.p_K), np.nan, adjusted_K)
    none_K = np.full(len(sign_K), np.nan)
    if shared_NSK.shape[1] > 1:
        return estimate_crossed(shared_NSK, factor="noise"), none_K
    reason_K = np.full(
        len(sign_K), "all prompts share one starting noise: no interval and no p", dtype=object
    )
    reason_K[found.prompts_K == 0] = "no pairs"
    return replace(found, error_K=none_K, p_K=none_K, reason_K=reason_K, crossed="noise"), none_K


def infer(found: Estimates, analysis: AnalysisConfig) -> pd.DataFrame:
    """ci_low, ci_high, p_value and reason of each contrast: the numbers that are shown, and why not others.

    Too few prompts have no interval, and too few shared noises no p.
    """
    frame = pd.DataFrame({"p_value": found.p_K, "reason": pd.Series(found.reason_K, dtype="str")})
    frame["ci_low"], frame["ci_high"] = found.interval(analysis.confidence)
    for k in np.flatnonzero(frame["reason"].isna()):
        if too_few(prompts := int(found.prompts_K[k]), analysis.confidence):
            frame.loc[k, ["ci_low", "ci_high"]] = np.nan
            frame.loc[k, "reason"] = (
                f"{prompts} prompts are too few for a {100 * analysis.confidence:g} % interval"
            )
    if found.crossed == "noise" and found.levels < FEWEST_NOISES:
        frame["p_value"] = np.nan
        reason = f"prompts share {found.levels} starting noises: no verdict below {FEWEST_NOISES}"
        frame["reason"] = frame["reason"].fillna(reason)
    return frame


def judged(
    cells: Cells, analysis: AnalysisConfig, metric: MetricConfig, *, lowest: float, highest: float
) -> pd.DataFrame:
    """All that the summary says of K contrasts from their estimates on: interval, p, verdict, power.

    `lowest` and `highest` are the extreme scores of the metric in the sweep: a verdict must hold whatever the
    lost pairs would have shown between them.
    """
    found, adjusted_K = estimated(cells, analysis)
    frame = infer(found, analysis).assign(p_adjusted=adjusted_K)
    frame.loc[frame["p_value"].isna(), "p_adjusted"] = np.nan
    lost_KC, losses = cells.lost_KC, None
    if lost_KC.any():
        low, high = (
            _tested(*estimated(filled, analysis)) for filled in cells.filled(lowest=lowest, highest=highest)
        )
        losses = Losses(lowest=low, highest=high, share_K=lost_KC.mean(axis=1))
    margin = analysis.margin if metric.name == analysis.primary else None
    rule = Rule(confidence=analysis.confidence, margin=margin)
    tested = _tested(found, adjusted_K)
    words_K, bars_K = decide(tested, rule, higher_is_better=metric.higher_is_better, losses=losses)
    identical_K = (found.error_K == 0) & (words_K == "undecided") & ~bars_K.astype(bool)
    words_K[identical_K], bars_K[identical_K] = "equivalent", "every pair has the same score in both arms"
    family = int((found.prompts_K > 0).sum())
    planned = replace(rule, confidence=1 - (1 - analysis.confidence) / max(family, 1))
    detectable_K = np.where([too_few(int(n), planned.confidence) for n in found.prompts_K], np.nan, 1.0)
    frame = frame.assign(
        verdict=pd.Series(words_K, dtype="str").where(found.prompts_K > 0),
        verdict_reason=bars_K,
        margin=np.nan if margin is None else margin,
        family=family,
        detectable=detectable_K * detectable(found, planned),
        prompts_to_decide=pd.Series(prompts_to_decide(found, planned), dtype="Int64"),
        skewness=found.skewness_K,
    )
    frame.loc[frame["verdict"] != "undecided", "prompts_to_decide"] = pd.NA
    return frame


def _tested(found: Estimates, adjusted_K: Floats) -> Estimates:
    """The estimates with the p that a verdict rests on: adjusted where there is such a p."""
    return replace(found, p_K=np.where(np.isfinite(adjusted_K), adjusted_K, found.p_K))


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

    cells = {
        "prompt_C": pd.factorize(grid.cells["prompt_id"].to_numpy()[cells_C])[0],
        "noise_C": grid.noises(cells_C),
    }
    frames = []
    for place, metric in enumerate(metrics):
        scores_C = [grid.values(rows_K, cells_C)[:, place] for rows_K in (arm_K, control_K)]
        of_metric = Cells(arm_KC=scores_C[0], control_KC=scores_C[1], **cells)
        at = (np.arange(len(frame)), np.full(len(frame), place))
        rows = contrast_rows(of_metric, analysis, metric, grid.extremes(place))
        if (rows["n_pairs"] == 0).any():
            unpaired = _no_pairs(grid, arm_K, control_K, cells_C, at, frame)
            rows["reason"] = rows["reason"].where(rows["n_pairs"] > 0, unpaired)
        named = frame[["trial_id", "index", "arm", "arm_place"]]
        frames.append(pd.concat([named.assign(metric_place=place), rows], axis=1))
    return pd.concat(frames, ignore_index=True).assign(split=split, confidence=analysis.confidence)


def contrast_rows(
    cells: Cells,
    analysis: AnalysisConfig,
    metric: MetricConfig,
    extremes: tuple[float, float],
) -> pd.DataFrame:
    """The columns of K contrasts on one metric."""
    better, k = metric.higher_is_better, len(cells.arm_KC)
    sign_K = np.full(k, -1.0 if better is False else 1.0)
    means = prompt_means(cells.arm_KC, cells.control_KC, cells.prompt_C, sign_K=sign_K)
    pairs_K = means.pairs_NK.sum(axis=0)
    inferred = judged(cells, analysis, metric, lowest=extremes[0], highest=extremes[1])
    counts = {
        "metric": metric.name,
        "n_prompts": (means.pairs_NK > 0).sum(axis=0),
        "n_pairs": pairs_K.astype(int),
        "n_missing": cells.arm_KC.shape[1] - pairs_K.astype(int),
        "mean_arm": _mean_of_prompts(means.arm_NK),
        "mean_control": _mean_of_prompts(means.control_NK),
        "mean_difference": _mean_of_prompts(means.difference_NK),
        "win_rate": np.divide(means.wins_K, pairs_K, out=np.full(k, np.nan), where=pairs_K > 0),
        "higher_is_better": pd.Series([better] * k, dtype="boolean"),
    }
    return inferred.assign(**counts)


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
    at: tuple[Ints, Ints],
    frame: pd.DataFrame,
) -> pd.Series:
    """Why a contrast would have no pair at all, told by its first cell."""
    if len(cells_C) == 0:
        return pd.Series("no pairs: there are no images", index=range(len(at[0])), dtype="str")
    at_first_cell = (*at, np.zeros_like(at[0]))
    sides: list[Any] = [side(grid, rows_K, cells_C, at_first_cell) for rows_K in (arm_K, control_K)]
    metric = pd.Series(np.array(grid.metrics, dtype=object)[at[1]], dtype="str")
    why = frame.iloc[at[0]].reset_index(drop=True)
    reasons = missing_reasons(grid, sides[0], sides[1], metric=metric, why=why)
    return "no pairs: " + reasons
