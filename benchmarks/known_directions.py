"""What the embedded judge sees: generated images, damaged step by step, must score lower at each step.

    python -m benchmarks.known_directions            # table
    python -m benchmarks.known_directions --write    # and the file that page and card read

48 images of the embedded model, 24 prompts of two noises each, under 10 damages at severity 0.1, 0.4 and 0.8.
The chance in a damage (where noise falls, which way a crop moves) is the same at every severity. A damage
counts as seen where the mean over prompts falls at each step, and at 0.4 by half a standard deviation of the
prompts' differences and by a tenth of what the median damage costs.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict, get_args

import numpy as np
import yaml
from numpy.typing import NDArray
from PIL import Image

from benchmarks.machine import print_table
from harness.config.plan.plan import noise_seed
from harness.config.schema.metric import AestheticMetric, ClipScoreMetric, MetricConfig
from harness.config.schema.model import EmojiModel
from harness.config.schema.recipe import DegradationName
from harness.diffusion.degradations import degrade
from harness.diffusion.models import load_model
from harness.diffusion.models.model import Row, SamplerSettings
from harness.metrics import build_metrics
from harness.metrics.metric import Batch, Metric
from harness.metrics.weights import KNOWN_DIRECTIONS

SEVERITIES = (0.1, 0.4, 0.8)
DECIDES = 0.4  # the severity at which the difference must be large
LARGE = -0.5  # standard deviations of prompts' differences
FAINT = 0.1  # of what the median damage costs
PROMPTS = Path(__file__).parents[1] / "sweeps" / "prompts" / "emoji.yaml"
JUDGES: tuple[MetricConfig, ...] = (
    AestheticMetric(encoder="emoji", head="emoji"),
    ClipScoreMetric(encoder="emoji"),
)


class Change(TypedDict):
    """What a damage does to a metric, by severity."""

    mean: list[float]  # of the prompts' differences from the undamaged images
    effect: list[float]  # the same over their standard deviation


def drawn(prompts: Sequence[str], noises: int) -> tuple[list[Image.Image], list[str]]:
    """Images as the quickstart's baseline draws them, and their prompts."""
    texts = [prompt for prompt in prompts for _ in range(noises)]
    rows = [
        Row(prompt=prompt, negative="", seed=noise_seed(prompt, number % noises), guidance=2.0)
        for number, prompt in enumerate(texts)
    ]
    model = load_model(EmojiModel())
    settings = SamplerSettings(steps=20, refiner_start=0.8)
    batches = [rows[start : start + 8] for start in range(0, len(rows), 8)]
    return [one.image for batch in batches for one in model.generate(batch, settings)], texts


def differences(
    metric: Metric, images: Sequence[Image.Image], prompts: Sequence[str]
) -> dict[str, list[list[float]]]:
    """Damage → for each severity the prompts' mean differences from the undamaged images, in their order."""
    intact = values(metric, images, prompts)
    found: dict[str, list[list[float]]] = {}
    for name in get_args(DegradationName):
        found[name] = []
        for severity in SEVERITIES:
            damaged = [
                degrade(image, name, severity=severity, rng=np.random.default_rng(number))
                for number, image in enumerate(images)
            ]
            apart = values(metric, damaged, prompts) - intact
            rows = {prompt: [prompt == other for other in prompts] for prompt in prompts}
            found[name].append([float(apart[row].mean()) for row in rows.values()])
    return found


def values(metric: Metric, images: Sequence[Image.Image], prompts: Sequence[str]) -> NDArray[np.float64]:
    """The scores, in order."""
    return np.array([one.value for one in metric.measure(Batch(images, prompts))], dtype=np.float64)


def change(by_severity: Sequence[Sequence[float]]) -> Change:
    """Of the prompts' differences at each severity."""
    means = [float(np.mean(row)) for row in by_severity]
    effects = [float(np.mean(row) / np.std(row, ddof=1)) for row in by_severity]
    return Change(mean=[round(mean, 3) for mean in means], effect=[round(effect, 2) for effect in effects])


def unseen(changes: Mapping[str, Change]) -> dict[str, str | None]:
    """Damage → why it does not count as seen; None where it does."""
    at = SEVERITIES.index(DECIDES)
    usual = float(np.median([found["mean"][at] for found in changes.values()]))
    return {name: _why_unseen(found, at, usual) for name, found in changes.items()}


def _why_unseen(found: Change, at: int, usual: float) -> str | None:
    steps = np.diff([0.0, *found["mean"]])
    if (steps >= 0).any():
        worst = int(np.argmax(steps))
        before = f"severity {SEVERITIES[worst - 1]:g}" if worst else "none"
        return f"the score rises from {before} to {SEVERITIES[worst]:g}"
    if found["effect"][at] > LARGE:
        return f"at severity {DECIDES:g} it costs {-found['effect'][at]:.1f} standard deviations"
    if found["mean"][at] > FAINT * usual:
        return f"at severity {DECIDES:g} it costs {-found['mean'][at]:.2f}, the median damage {-usual:.2f}"
    return None


def _shown(damage: str, row: Change, reason: str | None) -> dict[str, str]:
    changes = zip(SEVERITIES, row["mean"], row["effect"], strict=True)
    return {
        "damage": damage,
        **{f"at {severity:g}: mean, d": f"{mean:+.2f}, {d:+.2f}" for severity, mean, d in changes},
        "not seen, because": reason or "",
    }


def main() -> None:
    """Measure, print, and write on demand."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--write", action="store_true")
    asked = parser.parse_args()
    prompts = [prompt["text"] for prompt in yaml.safe_load(PROMPTS.read_text())]
    images, texts = drawn(prompts, noises=2)
    made: dict[str, Mapping[str, object]] = {}
    for metric in build_metrics(JUDGES, device="cpu").metrics:
        changes = {name: change(rows) for name, rows in differences(metric, images, texts).items()}
        reasons = unseen(changes)
        assert metric.weights_hash is not None
        damages = {name: {**found, "unseen": reasons[name]} for name, found in changes.items()}
        made[metric.weights_hash] = {"metric": metric.kind, "damages": damages}
        print(f"\n{metric.kind}, weights {metric.weights_hash}")
        print_table([_shown(name, row, reasons[name]) for name, row in changes.items()], device=None)
    if asked.write:
        KNOWN_DIRECTIONS.write_text(json.dumps(made, indent=1) + "\n")


if __name__ == "__main__":
    main()
