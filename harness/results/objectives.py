"""Objective values of a search, read from a sweep's tables; and its Pareto front."""

from collections.abc import Sequence
from itertools import compress

import numpy as np
import pandas as pd

from harness.config.schema.search import ContrastObjective, LossObjective


def gains(
    trials: pd.DataFrame, summary: pd.DataFrame, objectives: Sequence[ContrastObjective | LossObjective]
) -> pd.DataFrame:
    """Each trial's value of each objective on dev prompts, signed so that more is better.

    Index trial_id in the order of `trials`, a column per objective; NaN where a trial has no such value.
    """
    losses = trials.set_index("trial_id")["validation_loss"].astype(float)
    return pd.DataFrame(
        {
            number: -losses if isinstance(objective, LossObjective) else _contrast(summary, objective)
            for number, objective in enumerate(objectives)
        },
        index=losses.index,
    )


def front(gains_TO: pd.DataFrame) -> list[str]:
    """The trials on the Pareto front: no other is better in one objective and at least as good in all."""
    known = gains_TO.dropna()
    values_TO = known.to_numpy()
    at_least_TT = (values_TO[:, None] >= values_TO[None]).all(axis=2)
    better_TT = at_least_TT & (values_TO[:, None] > values_TO[None]).any(axis=2)
    return [str(trial) for trial in compress(known.index, ~np.any(better_TT, axis=0))]


def _contrast(summary: pd.DataFrame, objective: ContrastObjective) -> pd.Series:
    """`objective` names its metric, arm and control (`SweepConfig.meant`)."""
    rows = summary[
        (summary["metric"] == objective.metric)
        & (summary["arm"] == objective.arm)
        & (summary["control"] == objective.control)
        & (summary["split"] == "dev")
    ].set_index("trial_id")
    sign = rows["higher_is_better"].astype(bool).map({True: 1.0, False: -1.0})
    return rows["mean_difference"].astype(float) * sign
