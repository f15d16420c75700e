"""Small sweeps as tables, without drawing an image."""

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import pandas as pd

from harness.config.schema.evaluation import AnalysisConfig
from harness.config.schema.metric import AestheticMetric, ImageStatsMetric
from harness.results import tables

METRICS = (AestheticMetric(encoder="emoji", head="emoji"), ImageStatsMetric(kind="saturation"))
ANALYSIS = AnalysisConfig(primary="aesthetic", control="placebo", resamples=2000)
CONTROLS = ("baseline", "placebo")
ARM = "wrong_lora"

Value = Callable[[str, str | None, int, int, str], float | None]  # arm, trial, prompt, seed, metric


def make_tables(
    value: Value,
    *,
    trials: int = 2,
    prompts: dict[str, int],
    seeds: int = 2,
    test_trials: Iterable[int] = (),
    failed: Iterable[int] = (),
) -> dict[str, pd.DataFrame]:
    """Tables of a sweep with arms baseline, placebo, wrong_lora. `prompts`: how many on dev and on test.

    A value of null is a score that could not be computed. Failed trials have no images.
    """
    trial_rows, arms, images, scores = [], [], [], []
    for index in range(trials):
        trial = f"t{index}"
        broken = index in set(failed)
        trial_rows.append(
            {
                "trial_id": trial,
                "index": index,
                "status": "failed" if broken else "completed",
                "reason": "the loss became NaN" if broken else None,
                "run_id": f"r{index}",
                "dataset_id": "data",
                "adapter.rank": 4 * (index + 1),
                "config": "{}",
                "adapter_path": None if broken else f"adapters/r{index}/steps-000100",
                "final_loss": None if broken else 0.1,
                "validation_loss": None,
                "train_seconds": None if broken else 2.0,
                "selected": False,
            }
        )
        for name in (*CONTROLS, ARM):
            arm = f"d-{trial}" if name == ARM else f"d-{name}"
            arms.append(
                {
                    "trial_id": trial,
                    "arm": name,
                    "arm_id": arm,
                    "is_control": name != ARM,
                    "guidance": 5.0,
                    "reason": None,
                }
            )
    drawn: list[tuple[str, int | None]] = [(control, None) for control in CONTROLS]
    drawn += [(ARM, index) for index in range(trials) if index not in set(failed)]
    for name, owner in drawn:
        own = None if owner is None else f"t{owner}"
        for split, count in prompts.items():
            if split == "test" and owner is not None and owner not in set(test_trials):
                continue
            for prompt, seed in itertools.product(range(count), range(seeds)):
                image = _image(name, own, split, prompt, seed)
                images.append(image)
                for metric in METRICS:
                    found = value(name, own, prompt, seed, metric.kind)
                    scores.append(_score(image, metric.kind, found))
    return {
        "trials": pd.DataFrame(trial_rows),
        "arms": tables.typed(pd.DataFrame(arms), tables.ARMS),
        "images": tables.typed(pd.DataFrame(images, columns=tables.IMAGES.names), tables.IMAGES),
        "scores": tables.typed(pd.DataFrame(scores, columns=tables.SCORES.names), tables.SCORES),
    }


def _image(name: str, trial: str | None, split: str, prompt: int, seed: int) -> dict[str, Any]:
    arm = f"d-{trial}" if trial else f"d-{name}"
    image_id = f"{arm}-{split}{prompt:03}-{seed}"
    return {
        "image_id": image_id,
        "arm_id": arm,
        "arm": name,
        "trial_id": trial,
        "prompt_id": f"{split}{prompt:03}",
        "prompt": f"{split} prompt {prompt}",
        "tags": ["animal"] if prompt % 2 else [],
        "split": split,
        "seed": seed,
        "negative": "" if name == "baseline" else "wrong",
        "guidance": 5.0,
        "steps": 20,
        "effective_guidance": None,
        "orthogonal_share": None,
        "refiner_start": None,
        "latent_hash": f"latents-{split}{prompt}-{seed}",
        "sha256": "0" * 64,
        "path": f"images/{image_id}.png",
        "width": 64,
        "height": 64,
        "generation_seconds": 0.1,
    }


def _score(image: dict[str, Any], metric: str, value: float | None) -> dict[str, Any]:
    return {
        "image_id": image["image_id"],
        "metric": metric,
        "value": value,
        "reason": "the image cannot be read: not an image" if value is None else None,
        "metric_version": "1",
        "weights_hash": None,
        "prompt_truncated": None,
    }
