"""Distances between images, against cosines written out."""

import numpy as np
import pandas as pd
import pytest

from harness.results.embeddings import Embedded, diversity, drift

# Two trials with an arm and a sham each; the placebo is shared. Prompts p and q, seeds 0 to 2.
ARMS = pd.DataFrame(
    [
        (trial, arm, "placebo" if arm == "placebo" else f"{arm}-{trial}")
        for trial in "ab"
        for arm in ("placebo", "sham", "lora")
    ],
    columns=["trial_id", "arm", "arm_id"],
)
IMAGES = pd.DataFrame(
    [
        (f"{arm}/{prompt}{seed}", arm, prompt, seed)
        for arm in ARMS["arm_id"].unique()
        for prompt in "pq"
        for seed in range(3)
    ],
    columns=["image_id", "arm_id", "prompt_id", "seed"],
)


@pytest.fixture
def table() -> pd.DataFrame:
    vectors = np.random.default_rng(0).normal(size=(len(IMAGES), 8))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return pd.DataFrame({"image_id": IMAGES["image_id"], "embedding": list(vectors), "reason": None})


def cosine(table: pd.DataFrame, one: str, other: str) -> float:
    by_id = table.set_index("image_id")["embedding"]
    return float(np.dot(by_id[one], by_id[other]))


def test_drift_is_one_minus_the_cosine_with_the_paired_image(table: pd.DataFrame) -> None:
    found = drift(Embedded.of(table), IMAGES, ARMS, control="placebo").set_index("image_id")
    assert found["reason"].isna().all() and list(found.index) == list(IMAGES["image_id"])
    assert (found.loc[found.index.str.startswith("placebo"), "value"] == 0).all()
    expected = 1 - cosine(table, "lora-b/q2", "placebo/q2")
    assert found["value"]["lora-b/q2"] == pytest.approx(expected)


def test_drift_from_an_adapter_of_the_trials_own(table: pd.DataFrame) -> None:
    found = drift(Embedded.of(table), IMAGES, ARMS, control="sham").set_index("image_id")
    assert found["value"]["lora-a/p0"] == pytest.approx(1 - cosine(table, "lora-a/p0", "sham-a/p0"))
    assert found["value"]["lora-b/p0"] == pytest.approx(1 - cosine(table, "lora-b/p0", "sham-b/p0"))
    assert pd.isna(found["value"]["placebo/p0"])
    assert found["reason"]["placebo/p0"] == "its trials have 2 different sham arms"


def test_an_image_without_its_pair_or_embedding_says_so(table: pd.DataFrame) -> None:
    table.loc[table["image_id"] == "placebo/p1", ["embedding", "reason"]] = [None, "the image cannot be read"]
    images = IMAGES[IMAGES["image_id"] != "placebo/q1"]
    found = drift(Embedded.of(table), images, ARMS, control="placebo").set_index("image_id")
    assert found["reason"]["lora-a/p1"] == "placebo: the image cannot be read"
    assert found["reason"]["placebo/p1"] == "the image cannot be read"
    assert found["reason"]["lora-a/q1"] == "placebo has no image of this prompt and seed"
    assert (found["value"].isna() == found["reason"].notna()).all()
    assert found["value"].isna().sum() == 5 + 4


def test_diversity_is_the_mean_over_pairs_of_noises(table: pd.DataFrame) -> None:
    found = diversity(Embedded.of(table), IMAGES).set_index("image_id")["value"]
    names = [f"lora-a/p{seed}" for seed in range(3)]
    pairs = [1 - cosine(table, names[one], names[other]) for one, other in ((0, 1), (0, 2), (1, 2))]
    assert found[names].mean() == pytest.approx(np.mean(pairs))
    assert found[names[0]] == pytest.approx((pairs[0] + pairs[1]) / 2)


def test_the_same_image_for_every_noise_has_no_diversity(table: pd.DataFrame) -> None:
    vector = table["embedding"][0]
    table["embedding"] = [vector] * len(table)
    assert (diversity(Embedded.of(table), IMAGES)["value"] == 0).all()


def test_one_noise_alone_has_no_diversity(table: pd.DataFrame) -> None:
    lost = table["image_id"].isin(["lora-a/p0", "lora-a/p1"])
    table.loc[lost, "embedding"] = None
    table.loc[lost, "reason"] = "the image cannot be read"
    found = diversity(Embedded.of(table), IMAGES).set_index("image_id")
    assert found["reason"][["lora-a/p0", "lora-a/p1"]].eq("the image cannot be read").all()
    assert found["reason"]["lora-a/p2"] == "the only image of its prompt in this arm"
    assert found["value"].isna().sum() == 3
