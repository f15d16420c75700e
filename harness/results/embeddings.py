"""Distances between a sweep's images, by unit embeddings: how far an arm moves them, how varied they are.

A distance is 1 − cos, from 0 (the same) to 2, computed as ½‖a − b‖², by which an image is 0 from itself.

Shape legend: N images, D embedding width, S images of one prompt.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Vectors = NDArray[np.float64]
Row = tuple[str, float | None, str | None]


@dataclass(frozen=True)
class Embedded:
    """The embeddings of images, and why an image has none."""

    vectors_ND: Vectors
    row: Mapping[str, int]  # by image_id
    reasons: Mapping[str, str]  # of images without a vector, by image_id

    @classmethod
    def of(cls, table: pd.DataFrame) -> "Embedded":
        """From rows of the store: image_id, embedding (None where there is none) and reason."""
        has = table["embedding"].notna()
        found = table.loc[has]
        vectors = [np.asarray(vector, dtype=np.float64) for vector in found["embedding"]]
        return cls(
            np.stack(vectors) if vectors else np.zeros((0, 1)),
            {str(image_id): row for row, image_id in enumerate(found["image_id"])},
            dict(zip(table.loc[~has, "image_id"], table.loc[~has, "reason"], strict=True)),
        )


def drift(embedded: Embedded, images: pd.DataFrame, arms: pd.DataFrame, *, control: str) -> pd.DataFrame:
    """Each image's distance from the control's image of the same prompt and seed: image_id, value, reason.

    The control's own images have 0. Where trials have controls of their own, as an adapter trained alike, an
    image that several trials share has none, with a reason.
    """
    partners = _partners(arms, control)
    cells = list(zip(images["arm_id"], images["prompt_id"], images["seed"], images["image_id"], strict=True))
    at = {(arm, prompt, seed): image_id for arm, prompt, seed, image_id in cells}
    rows: list[Row] = []
    for arm_id, prompt, seed, image_id in cells:
        others = partners.get(arm_id, frozenset())
        if len(others) != 1:
            why = f"its trials have {len(others)} different {control} arms" if others else f"no {control} arm"
            rows.append((image_id, None, why))
            continue
        (other_arm,) = others
        rows.append((image_id, *_distance(embedded, image_id, at.get((other_arm, prompt, seed)), control)))
    return pd.DataFrame(rows, columns=["image_id", "value", "reason"])


def diversity(embedded: Embedded, images: pd.DataFrame) -> pd.DataFrame:
    """Each image's mean distance from the arm's other images of its prompt: image_id, value, reason.

    The mean over a prompt is the mean over its pairs of noises.
    """
    rows: list[Row] = []
    for _, group in images.groupby(["arm_id", "prompt_id"], sort=False):
        ids = group["image_id"].tolist()
        there = [image_id for image_id in ids if image_id in embedded.row]
        vectors_SD = embedded.vectors_ND[[embedded.row[image_id] for image_id in there]]
        apart_SS = 0.5 * ((vectors_SD[:, None] - vectors_SD[None]) ** 2).sum(axis=2)
        for image_id in ids:
            if image_id not in embedded.row:
                rows.append((image_id, None, _why(embedded, image_id)))
            elif len(there) < 2:
                rows.append((image_id, None, "the only image of its prompt in this arm"))
            else:
                rows.append((image_id, apart_SS[there.index(image_id)].sum() / (len(there) - 1), None))
    return pd.DataFrame(rows, columns=["image_id", "value", "reason"])


def _partners(arms: pd.DataFrame, control: str) -> dict[str, frozenset[str]]:
    """arm_id → arm_ids of the control in the trials that have this arm."""
    of_trial = arms.loc[arms["arm"] == control, ["trial_id", "arm_id"]]
    both = arms.merge(of_trial, on="trial_id", suffixes=("", "_control"))
    return {str(arm_id): frozenset(ids) for arm_id, ids in both.groupby("arm_id")["arm_id_control"]}


def _distance(
    embedded: Embedded, image_id: str, other: str | None, control: str
) -> tuple[float | None, str | None]:
    if image_id not in embedded.row:
        return None, _why(embedded, image_id)
    if other is None:
        return None, f"{control} has no image of this prompt and seed"
    if other not in embedded.row:
        return None, f"{control}: {_why(embedded, other)}"
    apart_D = embedded.vectors_ND[embedded.row[image_id]] - embedded.vectors_ND[embedded.row[other]]
    return float(0.5 * (apart_D**2).sum()), None


def _why(embedded: Embedded, image_id: str) -> str:
    return embedded.reasons.get(image_id, "the image has no embedding")
