"""Sweeps of many trials: the quickstart's, with as many training seeds as it takes and fewer images."""

from pathlib import Path

QUICKSTART = Path(__file__).parents[1] / "sweeps" / "quickstart.yaml"
TRIALS_OF_SEED, RUNS_OF_SEED = 8, 4  # two recipes, two ranks, and two lengths of one run


def overrides(*, name: str, seeds: int, prompts: int) -> list[str]:
    """What `--set` changes: training seeds, and `prompts` each for dev and for test, drawn at one seed."""
    texts = [
        f"{{text: 'a {subject} {place}', split: {split}}}"
        for split, place in (("dev", "at night"), ("test", "at sunset"))
        for subject in SUBJECTS[:prompts]
    ]
    return [
        f"name={name}",
        f"axes.training.seed={list(range(seeds))}",
        f"prompts=[{', '.join(texts)}]",
        "seeds=[0]",
    ]


SUBJECTS = (
    "fox",
    "penguin",
    "hamburger",
    "pineapple",
    "rocket",
    "taxi",
    "castle",
    "guitar",
    "sunflower",
    "robot",
    "panda",
    "frog",
)
