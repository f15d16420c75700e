"""One training step of the harness's own loop against the plain one, on the same weights in the same run.

`python -m benchmarks.training_step --model emoji`, or `sdxl-random`: full-size SDXL with random weights.
"""

import argparse
import tempfile
from pathlib import Path

from benchmarks import subject
from benchmarks.machine import print_table
from benchmarks.plain import plain_training
from benchmarks.timing import Spent, Way, as_rows, now, side_by_side
from harness.diffusion.models.pipelines import Pipelines
from harness.diffusion.models.sdxl import Sdxl
from harness.diffusion.training import train
from harness.diffusion.training.loop import LOOK_EVERY

PICTURES = 8
RANK = 8
TOGETHER = 8  # runs of a pack


def warm_up(model: Sdxl) -> int:
    """Steps before the clock starts. Then each image has been seen, and the harness has its latents.

    A sweep encodes them before it trains. On an accelerator the loop looks at its losses every 16 steps.
    """
    return LOOK_EVERY if model.device.type == "cuda" else PICTURES


def harness_round(
    model: Sdxl,
    dataset: Path,
    *,
    steps: int,
    batch_size: int,
    compiled: bool = False,
    checkpointing: bool = False,
    together: int = 1,
) -> Spent:
    """What a step of one run takes in `harness.training.train`, its first steps and setting up left out.

    `together` runs are trained in one pack, and share the time.
    """
    first = warm_up(model)
    last = first + steps
    times: dict[int, Spent] = {}

    def note(step: int, _loss: float) -> None:
        if step in (first, last):
            times[step] = now(model.device)

    jobs = [
        subject.job(
            subject.training_run(model, steps=last, batch_size=batch_size, rank=RANK, seed=seed),
            dataset,
            report=note if seed == together - 1 else ignore,
        )
        for seed in range(together)
    ]
    train(jobs, model, at_once=together, checkpointing=checkpointing, compiled=compiled)
    return times[last].since(times[first], items=steps * together)


def ignore(_step: int, _loss: float) -> None:
    """Progress is not shown."""


def plain_round(pipelines: Pipelines, model: Sdxl, *, steps: int, batch_size: int) -> Spent:
    """What a step of the plain loop takes, its first steps and its setting up left out."""
    run = subject.training_run(model, steps=steps, batch_size=batch_size, rank=RANK)
    images = subject.images(max(PICTURES, batch_size), model.resolution)  # it takes none twice in a step
    with plain_training(pipelines, images, run.training, rank=RANK) as loop:
        for _ in range(warm_up(model)):
            loop.step()
        start = now(model.device)
        for _ in range(steps):
            loop.step()
        return now(model.device).since(start, items=steps)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", choices=subject.MODELS, default="emoji")
    parser.add_argument("--resolution", type=int, help="px of sdxl-random's images, 1024 if not given")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--steps", type=int, default=32, help="steps of a round, a multiple of 16")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compiled", action="store_true", help="the harness through torch.compile, too")
    given = parser.parse_args()
    pipelines, model = subject.load(given.model, resolution=given.resolution)
    size = {"steps": given.steps, "batch_size": given.batch_size}
    with tempfile.TemporaryDirectory() as folder:
        images = subject.images(PICTURES, model.resolution)
        dataset = subject.write(images, Path(folder) / "images")
        ways = [
            Way(name="plain", round=lambda: plain_round(pipelines, model, **size)),
            Way(name="harness", round=lambda: harness_round(model, dataset, **size)),
            Way(
                name=f"harness, {TOGETHER} runs packed",
                round=lambda: harness_round(model, dataset, **size, together=TOGETHER),
            ),
        ]
        if given.compiled:
            ways.append(
                Way(
                    name="harness, compiled",
                    round=lambda: harness_round(model, dataset, **size, compiled=True),
                )
            )
        measured = side_by_side(ways, rounds=given.rounds, device=model.device)
    print_table(as_rows(measured, "step"), device=model.device)


if __name__ == "__main__":
    main()
