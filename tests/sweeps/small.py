"""A whole sweep that takes seconds: the tiny SDXL, a tiny CLIP, two trials of one run, and their sham."""

from pathlib import Path
from typing import Any

import yaml

from harness.config.loading.load import load_sweep
from harness.config.plan.plan import Plan, expand
from harness.config.schema.model import SdxlModel

PLAIN = {
    "kind": "plain",
    "prompts": ["a red fox", "a blue cup"],
    "count": 3,
    "steps": 2,
    "guidance": 3.0,
    "refiner_start": None,
}


def write_sweep(file: Path, model: SdxlModel, encoder: str, **changes: Any) -> Path:
    """Write a small sweep's YAML. `changes` replace top-level keys."""
    sweep: dict[str, Any] = {
        "name": "small",
        "question": "Does anything change?",
        "model": model.model_dump(mode="json", exclude={"digest"}),
        "recipe": {
            "kind": "keywords",
            "keywords": ["blurry", "ugly"],
            "guidance": [3.0, 4.0],
            "steps": 2,
            "refiner_start": None,
        },
        "adapter": {"rank": 2},
        "training": {"learning_rate": 0.01, "batch_size": 2, "steps": 4},
        "axes": {"training.steps": [2, 4]},
        "arms": [
            {"name": "baseline"},
            {"name": "placebo", "negative": "wrong"},
            {"name": "sham", "negative": "wrong", "adapters": [{"recipe": PLAIN}]},
            {"name": "wrong_lora", "negative": "wrong", "adapters": [{"scale": 1.0}]},
        ],
        "prompts": [
            {"text": "a green cat", "split": "dev"},
            {"text": "a yellow hat", "split": "dev"},
            {"text": "a red star", "split": "test"},
        ],
        "seeds": [0, 1],
        "sampler": {"steps": 3, "guidance": 4.0, "refiner_start": 0.6},
        "metrics": [{"kind": "clip_score", "encoder": encoder}, "saturation"],
        "analysis": {"primary": "clip_score", "resamples": 200},
        # By batch so small a model rounds otherwise; a second worker would take longer to begin than to work.
        "compute": {"batch_size": 1, "checkpoint_every": 2, "max_concurrent": 1},
        **changes,
    }
    file.write_text(yaml.safe_dump(sweep, sort_keys=False))
    return file


def small_plan(folder: Path, model: SdxlModel, encoder: str, **changes: Any) -> Plan:
    """The plan of `write_sweep`'s sweep, through the real reader."""
    return expand(load_sweep(write_sweep(folder / "small.yaml", model, encoder, **changes)))
