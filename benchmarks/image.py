"""One image of the harness's own `Model.draw` against the stock pipelines, on the same weights, in one run.

`python -m benchmarks.image --model emoji`, or `sdxl-random` for the full-size SDXL with random weights.
Base, refiner from 0.8 on, and a LoRA on both guidance branches; several prompts and seeds, as in a sweep.
"""

import argparse
import tempfile
from pathlib import Path

import torch

from benchmarks import subject
from benchmarks.machine import print_table
from benchmarks.plain import plain_image, plain_lora
from benchmarks.timing import Spent, Way, as_rows, now, side_by_side
from harness.config.schema.adapter import LowRankAdapter
from harness.config.schema.evaluation import Branch
from harness.diffusion.models.model import Fresh, Row, RowAdapter, SamplerSettings
from harness.diffusion.models.pipelines import Pipelines
from harness.diffusion.models.sdxl import Sdxl

PROMPTS = ("a fox wearing a hat", "a red car", "two cups on a table", "a star above a tree")
GUIDANCE = 7.5
RANK = 8


def rows(adapter: Path, count: int, *, branch: Branch = "both") -> list[Row]:
    """Every prompt at as many seeds as it takes to make this many images."""
    acting = (RowAdapter(path=adapter, scale=1.0, branch=branch),)
    return [
        Row(
            prompt=PROMPTS[place % len(PROMPTS)],
            negative="wrong",
            seed=place // len(PROMPTS),
            guidance=GUIDANCE,
            adapters=acting,
        )
        for place in range(count)
    ]


def write_adapter(model: Sdxl, folder: Path) -> Path:
    """A LoRA that acts: both matrices random, as after training."""
    config = LowRankAdapter(rank=RANK)
    with model.attach([Fresh(adapter=config, seed=0)]) as trainable:
        state = trainable.members[0].state_dict()
    generator = torch.Generator().manual_seed(0)
    state = {
        name: 0.1 * torch.randn(tensor.shape, generator=generator) if ".lora_B." in name else tensor
        for name, tensor in state.items()
    }
    model.save_adapter(state, config, folder, {})
    return folder


def plain_round(pipelines: Pipelines, drawn: list[Row], settings: SamplerSettings) -> Spent:
    """What an image takes, one at a time; the LoRA is loaded once."""
    with plain_lora(pipelines, drawn[0].adapters[0].path):
        start = now(pipelines.base.device)
        for row in drawn:
            plain_image(pipelines, row, settings)
        return now(pipelines.base.device).since(start, items=len(drawn))


def harness_round(model: Sdxl, drawn: list[Row], settings: SamplerSettings) -> Spent:
    """Seconds per image, in batches of the model's own size."""
    at_once = model.images_per_batch(settings)
    start = now(model.device)
    for first in range(0, len(drawn), at_once):
        model.generate(drawn[first : first + at_once], settings)
    return now(model.device).since(start, items=len(drawn))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", choices=subject.MODELS, default="emoji")
    parser.add_argument("--resolution", type=int, help="px of sdxl-random's images, 1024 if not given")
    parser.add_argument("--images", type=int, default=16, help="of a round")
    parser.add_argument("--steps", type=int, default=20, help="denoising steps of each")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    pipelines, model = subject.load(given.model, resolution=given.resolution)
    settings = SamplerSettings(steps=given.steps, refiner_start=0.8)
    with tempfile.TemporaryDirectory() as folder:
        drawn = rows(write_adapter(model, Path(folder) / "adapter"), given.images)
        ways = [
            Way(name="plain", round=lambda: plain_round(pipelines, drawn, settings)),
            Way(name="harness", round=lambda: harness_round(model, drawn, settings)),
        ]
        measured = side_by_side(ways, rounds=given.rounds, device=model.device)
    print_table(as_rows(measured, "image"), device=model.device)


if __name__ == "__main__":
    main()
