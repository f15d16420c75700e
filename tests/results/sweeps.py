"""Small sweeps as tables, without drawing a picture."""

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import pandas as pd

from harness.config.schema.evaluation import AnalysisSpec
from harness.config.schema.metric import AestheticMetric, GuardMetric
from harness.results import tables

METRICS = (AestheticMetric(encoder="emoji", head="emoji"), GuardMetric(kind="saturation"))
ANALYSIS = AnalysisSpec(primary="aesthetic", control="placebo", resamples=2000)
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

    A value of null is a score that could not be computed. Failed trials have no pictures.
    """
    trial_rows, draws, images, scores = [], [], [], []
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
        for arm in (*CONTROLS, ARM):
            draw = f"d-{trial}" if arm == ARM else f"d-{arm}"
            draws.append({"trial_id": trial, "arm": arm, "draw_id": draw, "is_control": arm != ARM})
    drawn: list[tuple[str, int | None]] = [(control, None) for control in CONTROLS]
    drawn += [(ARM, index) for index in range(trials) if index not in set(failed)]
    for arm, owner in drawn:
        name = None if owner is None else f"t{owner}"
        for split, count in prompts.items():
            if split == "test" and owner is not None and owner not in set(test_trials):
                continue
            for prompt, seed in itertools.product(range(count), range(seeds)):
                picture = _picture(arm, name, split, prompt, seed)
                images.append(picture)
                for metric in METRICS:
                    found = value(arm, name, prompt, seed, metric.kind)
                    scores.append(_score(picture, metric.kind, found))
    return {
        "trials": pd.DataFrame(trial_rows),
        "draws": tables.typed(pd.DataFrame(draws), tables.DRAWS),
        "images": tables.typed(pd.DataFrame(images, columns=tables.IMAGES.names), tables.IMAGES),
        "scores": tables.typed(pd.DataFrame(scores, columns=tables.SCORES.names), tables.SCORES),
    }


def _picture(arm: str, trial: str | None, split: str, prompt: int, seed: int) -> dict[str, Any]:
    draw = f"d-{trial}" if trial else f"d-{arm}"
    image_id = f"{draw}-{split}{prompt:03}-{seed}"
    return {
        "image_id": image_id,
        "draw_id": draw,
        "arm": arm,
        "trial_id": trial,
        "prompt_id": f"{split}{prompt:03}",
        "prompt": f"{split} prompt {prompt}",
        "tags": ["animal"] if prompt % 2 else [],
        "split": split,
        "seed": seed,
        "negative": "" if arm == "baseline" else "wrong",
        "guidance": 5.0,
        "steps": 20,
        "refiner_start": None,
        "latent_hash": f"latents-{split}{prompt}-{seed}",
        "sha256": "0" * 64,
        "path": f"images/{image_id}.png",
        "width": 64,
        "height": 64,
        "draw_seconds": 0.1,
    }


def _score(picture: dict[str, Any], metric: str, value: float | None) -> dict[str, Any]:
    return {
        "image_id": picture["image_id"],
        "metric": metric,
        "value": value,
        "reason": "the picture cannot be read: not a picture" if value is None else None,
        "metric_version": "1",
        "weights_hash": None,
        "prompt_truncated": None,
    }
