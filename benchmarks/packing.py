"""Packed training: several runs through one frozen base, against the same runs one after the other.

`python -m benchmarks.packing` trains the runs in one warm process, in packs of 1, 2, 4, 8 and 16. Packs of
one are the harness's own loop, run after run; `plain` is the loop that diffusers' script has. With
`--process-steps 150` there is one process per run besides: it starts and loads the model before its steps.
`--model sdxl-random` is full-size SDXL with random weights, for a GPU.
"""

import argparse
import os
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path

import torch

from benchmarks import subject
from benchmarks.machine import print_table
from benchmarks.timing import Measured, Spent, Way, side_by_side
from benchmarks.training_step import PICTURES, RANK, harness_round, plain_round
from harness.config.schema.model import ModelConfig
from harness.diffusion.models import load_model
from harness.diffusion.models.sdxl import Sdxl
from harness.diffusion.training import train
from harness.diffusion.training.autotune import runs_at_once

SIZES = (1, 2, 4, 8, 16)
PROBED = 4096  # rows and columns of the matrix product that the device's peak is measured by


def as_rows(measured: list[Measured], *, batch_size: int) -> list[dict[str, str]]:
    """The table. `times as fast` is against the second way: the harness's loop, one run after the other."""
    plain, alone = (found.median.wall for found in measured[:2])
    return [
        {
            "way": found.name,
            "s per step of a run": f"{found.median.wall:.4g}",
            "lowest to highest": f"{min(s.wall for s in found.rounds):.4g} to "
            f"{max(s.wall for s in found.rounds):.4g}",
            "samples per s": f"{batch_size / found.median.wall:.4g}",
            "times as fast as alone": f"{alone / found.median.wall:.2f}",
            "times as fast as plain": f"{plain / found.median.wall:.2f}",
            "GiB at most": "not counted" if found.peak is None else f"{found.peak / 2**30:.2f}",
        }
        for found in measured
    ]


def peak_flops(model: Sdxl, *, side: int = PROBED) -> float:
    """Operations per second of a large square matrix product in the base's precision, the best of ten."""
    matrix = torch.randn(side, side, device=model.device, dtype=model._unet.dtype)
    seconds = []
    for _ in range(10):
        start = time.perf_counter()
        matrix @ matrix
        if model.device.type == "cuda":
            torch.cuda.synchronize(model.device)
        seconds.append(time.perf_counter() - start)
    return 2 * side**3 / min(seconds)


def in_a_process(model: Sdxl, dataset: Path, *, steps: int, batch_size: int) -> Spent:
    """What a step of a run takes that has a process to itself, from its start to its end."""
    trained = get_context("spawn").Process(target=_trained, args=(model.config, dataset, steps, batch_size))
    started, before = time.perf_counter(), os.times()
    trained.start()
    trained.join()
    assert trained.exitcode == 0
    wall, after = time.perf_counter() - started, os.times()
    of_children = after.children_user + after.children_system - before.children_user - before.children_system
    return Spent(wall=wall / steps, processor=of_children / steps)


def _trained(config: ModelConfig, dataset: Path, steps: int, batch_size: int) -> None:
    model = load_model(config)
    assert isinstance(model, Sdxl)
    run = subject.training_run(model, steps=steps, batch_size=batch_size, rank=RANK)
    train([subject.job(run, dataset)], model)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", choices=subject.MODELS, default="emoji")
    parser.add_argument("--resolution", type=int, help="px of sdxl-random's images, 1024 if not given")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="runs in a pack")
    parser.add_argument("--steps", type=int, default=16, help="steps of a round, a multiple of 16")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--checkpointing", action="store_true", help="compute activations again")
    parser.add_argument("--process-steps", type=int, help="steps of a run that has a process to itself")
    parser.add_argument("--compiled", action="store_true", help="through torch.compile")
    given = parser.parse_args()
    pipelines, model = subject.load(given.model, resolution=given.resolution)
    size = {"steps": given.steps, "batch_size": given.batch_size}
    how = {"compiled": given.compiled, "checkpointing": given.checkpointing}
    with tempfile.TemporaryDirectory() as folder:
        images = subject.images(PICTURES, model.resolution)
        dataset = subject.write(images, Path(folder) / "images")
        ways = [Way(name="plain", round=lambda: plain_round(pipelines, model, **size))]
        ways += [
            Way(
                name=f"packs of {together}",
                round=lambda together=together: harness_round(  # type: ignore[misc]
                    model, dataset, **size, **how, together=together
                ),
            )
            for together in sorted({1, *given.sizes})
        ]
        if given.process_steps:
            own = {"steps": given.process_steps, "batch_size": given.batch_size}
            ways.append(Way(name="one process per run", round=lambda: in_a_process(model, dataset, **own)))
        measured = side_by_side(ways, rounds=given.rounds, device=model.device)
    print_table(as_rows(measured, batch_size=given.batch_size), device=model.device)
    runs = [
        subject.training_run(model, steps=1, batch_size=given.batch_size, rank=RANK, seed=seed)
        for seed in range(max(given.sizes))
    ]
    chosen = runs_at_once(runs, model, checkpointing=given.checkpointing)
    print(f"Of {len(runs)} runs, `pack: auto` trains {chosen} at once.")
    print(f"A product of two {PROBED} × {PROBED} matrices: {peak_flops(model) / 1e9:.0f} GFLOP/s")


if __name__ == "__main__":
    main()
