"""The plain way and the harness do the same work: the same adapter, the same images."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import image, subject, training_step
from benchmarks.plain import plain_image, plain_lora, plain_training
from harness.diffusion.models.model import Fresh, SamplerSettings
from harness.diffusion.models.pipelines import Pipelines
from harness.diffusion.models.sdxl import Sdxl
from harness.diffusion.training import train
from harness.diffusion.training.batches import plan_steps
from harness.diffusion.training.checkpoint import Checkpoint
from harness.diffusion.training.data import Posteriors

STEPS = 3
Loaded = tuple[Pipelines, Sdxl]


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    return subject.load("emoji", resolution=None)


def test_the_plain_loop_trains_the_same_adapter(loaded: Loaded, tmp_path: Path) -> None:
    """Given the same start, latents, timesteps and noise."""
    pipelines, model = loaded
    images = subject.images(4, model.resolution)
    dataset = subject.write(images, tmp_path / "images")
    run = subject.training_run(model, steps=STEPS, batch_size=2, learning_rate=1e-3)
    with model.attach([Fresh(adapter=run.adapter, seed=run.training.seed)]) as trainable:
        start = trainable.members[0].state_dict()
    saved: list[Checkpoint] = []
    train([subject.job(run, dataset, save=lambda checkpoint, _: saved.append(checkpoint))], model)
    posteriors = Posteriors(model)
    plan = plan_steps(run, model, images=dataset, prior=None, posteriors=posteriors, rank=0, size=1)
    alphas_cumprod, _ = model.noise_schedule()
    losses = []
    with plain_training(pipelines, images, run.training, rank=8) as loop:
        for name, parameter in loop.parameters.items():
            parameter.data.copy_(start["unet." + name.replace(".plain.", ".")])
        for step in range(1, STEPS + 1):
            ((_, batch),) = plan.batches(step)
            alpha_bar = alphas_cumprod[batch.timesteps_B][:, None, None, None]
            root, rest = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()  # v-prediction: solve for its two parts
            x0_BChw = root * batch.noisy_BChw - rest * batch.target_BChw
            noise_BChw = rest * batch.noisy_BChw + root * batch.target_BChw
            losses.append(loop.update(x0_BChw, noise_BChw, batch.timesteps_B))
        trained = {"unet." + n.replace(".plain.", "."): p.detach() for n, p in loop.parameters.items()}
    assert losses == pytest.approx(saved[0].losses, rel=1e-4)
    moved = torch.cat([(saved[0].adapter[name] - start[name]).flatten() for name in start])
    apart = torch.cat([(saved[0].adapter[name] - trained[name]).flatten() for name in start])
    assert moved.norm() > 0.1 and apart.norm() < 0.01 * moved.norm()


def test_the_stock_pipelines_draw_the_same_images(loaded: Loaded, tmp_path: Path) -> None:
    pipelines, model = loaded
    settings = SamplerSettings(steps=6, refiner_start=0.5)
    adapter = image.write_adapter(model, tmp_path / "adapter")
    rows = image.rows(adapter, 5)
    drawn = [np.asarray(found.image, dtype=int) for found in model.generate(rows, settings)]
    with plain_lora(pipelines, adapter):
        plain = [np.asarray(plain_image(pipelines, row, settings), dtype=int) for row in rows]
    without = [np.asarray(plain_image(pipelines, row, settings), dtype=int) for row in rows]
    for ours, theirs, control in zip(drawn, plain, without, strict=True):
        assert np.abs(ours - theirs).max() <= 2
        assert np.abs(control - theirs).max() > 20, "the adapter acts"


def test_measuring_leaves_the_model_as_it_was(loaded: Loaded, tmp_path: Path) -> None:
    pipelines, model = loaded
    before = {name: (p.dtype, p.requires_grad) for name, p in pipelines.base.unet.named_parameters()}
    images = subject.images(2, model.resolution)
    run = subject.training_run(model, steps=1, batch_size=1)
    with plain_training(pipelines, images, run.training, rank=2) as loop:
        loop.step()
    with plain_lora(pipelines, image.write_adapter(model, tmp_path / "adapter")):
        pass
    after = {name: (p.dtype, p.requires_grad) for name, p in pipelines.base.unet.named_parameters()}
    assert after == before


@pytest.mark.parametrize(
    ("module", "arguments"),
    [(image, ["--images", "2", "--steps", "5"]), (training_step, ["--steps", "2"])],
)
def test_a_command_prints_its_table(
    module: object, arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["image.py", *arguments, "--rounds", "1"])
    module.main()  # type: ignore[attr-defined]
    printed = capsys.readouterr().out
    assert "| plain " in printed and "| harness " in printed and "torch" in printed
