"""Training on a CUDA device that is not there (see `tests/fake_cuda.py`), and half precision on the CPU."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from harness.config.schema.adapter import AdapterConfig, LowRankAdapter, TextualInversion
from harness.config.schema.model import EmojiModel, SdxlModel
from harness.diffusion.models import load_model
from harness.diffusion.models.model import Fresh, Model
from harness.diffusion.models.random_weights import hollow_pipelines
from harness.diffusion.models.sdxl import Sdxl
from harness.diffusion.training import train
from harness.diffusion.training.autotune import runs_at_once
from harness.diffusion.training.checkpoint import Checkpoint
from harness.diffusion.training.data import write_latents
from harness.diffusion.training.distributed import fresh_accelerators
from harness.diffusion.training.noise import mean_squared_error
from harness.diffusion.training.run_state import Job
from tests.diffusion.adapters.adapters import attached, base_of
from tests.diffusion.models.test_attach import inputs, parameters_of, randomise
from tests.diffusion.models.test_sdxl import seeded
from tests.diffusion.training.runs import Trainer, make_run, raise_it, write_images
from tests.fake_cuda import CUDA, FakeCuda, fake_cuda, is_fake, leaves

EVERYWHERE = ("attention", "convolutions", "feed_forward")
MIDDLE: dict[str, Any] = {"targets": EVERYWHERE, "blocks": ("mid_block",)}
LORA = LowRankAdapter(rank=4, dropout=0.2, **MIDDLE)
WORDS = LowRankAdapter(rank=4, alpha=2.0, text_encoders=True, dropout=0.2, **MIDDLE)
DORA = LowRankAdapter(kind="dora", rank=12, **MIDDLE)


@pytest.fixture(scope="module", params=["bf16", "fp16"])
def on_cuda(request: pytest.FixtureRequest, tiny_config: SdxlModel) -> Model:
    with fake_cuda():
        return load_model(tiny_config.model_copy(update={"precision": request.param}), device=CUDA)


@pytest.fixture
def cuda() -> Iterator[FakeCuda]:
    with fake_cuda() as cuda:
        yield cuda


def pack(
    model: Model,
    images: Path,
    adapters: Sequence[AdapterConfig],
    resume: list[Checkpoint] | None = None,
    **how: Any,
) -> list[dict[int, Checkpoint]]:
    """What a pack of these saves after its steps 1 and 2."""
    saved: list[dict[int, Checkpoint]] = [{} for _ in adapters]
    jobs = [
        Job(
            run=make_run(model, adapter=adapter, checkpoints=(1, 2), ema=0.9),
            images=images,
            prior=None,
            latents=(),
            resume=None if resume is None else resume[number],
            save=lambda checkpoint, _, number=number: saved[number].update({checkpoint.step: checkpoint}),  # type: ignore[misc]
            save_at=lambda _: False,
            report=lambda _step, _loss: None,
            ended=raise_it,
        )
        for number, adapter in enumerate(adapters)
    ]
    train(jobs, model, at_once=len(jobs), **how)
    return saved


def on_cpu(checkpoint: Checkpoint) -> bool:
    tensors = [*checkpoint.adapter.values(), *checkpoint.optimizer.values(), *checkpoint.ema.values()]
    return all(tensor.dtype == torch.float32 and not is_fake(tensor) for tensor in tensors)


def test_a_pack_is_trained_averaged_saved_and_resumed(cuda: FakeCuda, on_cuda: Model, images: Path) -> None:
    """With checkpointing in fp16; those alone have it in bf16."""
    adapters = [WORDS, DORA]
    checkpointing = on_cuda.config.precision == "fp16"
    saved = pack(on_cuda, images, adapters, checkpointing=checkpointing)
    assert all(on_cpu(checkpoint) and checkpoint.ema for one in saved for checkpoint in one.values())
    resumed = pack(on_cuda, images, adapters, [one[1] for one in saved], checkpointing=checkpointing)
    assert [list(one) for one in resumed] == [[2], [2]]
    for one, other in zip(saved, resumed, strict=True):
        assert other[2].optimizer.keys() == one[2].optimizer.keys()
    scaled = [any(name.startswith("scaler.") for name in one[2].optimizer) for one in saved]
    assert scaled == [on_cuda.config.precision == "fp16"] * 2


@pytest.mark.parametrize("adapter", [LORA, DORA, WORDS], ids=["lora", "dora", "text encoders"])
def test_a_run_alone_is_trained_and_saved(
    cuda: FakeCuda, on_cuda: Model, run_training: Trainer, adapter: LowRankAdapter
) -> None:
    checkpointing = on_cuda.config.precision == "bf16"
    saved = run_training(
        model=on_cuda, adapter=adapter, ema=0.9, checkpoints=(1,), checkpointing=checkpointing
    ).saved
    assert on_cpu(saved[1]) and saved[1].ema


def test_a_word_is_learnt_and_resumed(
    cuda: FakeCuda, on_cuda: Model, run_training: Trainer, tmp_path: Path
) -> None:
    asked: dict[str, Any] = {"model": on_cuda, "adapter": TextualInversion(), "checkpoints": (1, 2)}
    saved = run_training(**asked, checkpointing=on_cuda.config.precision == "bf16").saved
    saved[1].write(tmp_path)
    again = run_training(**asked, resume=Checkpoint.read(tmp_path)).saved
    assert list(again) == [2] and on_cpu(again[2])


def test_a_step_never_waits_for_the_device(
    cuda: FakeCuda, on_cuda: Model, run_training: Trainer, tmp_path: Path
) -> None:
    """Only a checkpoint does, and every 16th step, which looks at the losses. The first encodes the image."""
    image = write_images(tmp_path, seed=0, count=1)
    waits: list[int] = []

    def note(_step: int) -> bool:
        waits.append(len(cuda.waits))
        return False

    run_training(model=on_cuda, adapter=LORA, dataset=image, ema=0.9, checkpoints=(4,), save_at=note)
    first, *others = waits
    assert first > 0 and others == [first] * 2


def test_stored_latents_and_held_out_images_reach_the_device(
    cuda: FakeCuda, on_cuda: Model, run_training: Trainer, images: Path, tmp_path: Path
) -> None:
    write_latents(on_cuda, images=images, folder=tmp_path, mirrored=False)
    settings: dict[str, Any] = {
        "model": on_cuda,
        "adapter": LowRankAdapter(**MIDDLE),
        "latents": tuple(tmp_path.glob("*.safetensors")),
        "class_images": images,
        "prior": {"prompt": "a fox", "recipe": {"kind": "folder", "path": "class"}},
        "min_snr_gamma": 5.0,
        "holdout": 1,
    }
    with mock.patch.object(on_cuda, "encode_images", side_effect=AssertionError("all latents are stored")):
        saved = run_training(**settings, checkpoints=(1,)).saved[1]
    assert saved.validation is not None and list(saved.validation) == [1]


def test_probes_of_a_pack_run_on_the_device(cuda: FakeCuda, on_cuda: Model) -> None:
    runs = [make_run(on_cuda, adapter=LowRankAdapter(**MIDDLE), seed=seed) for seed in (0, 1)]
    assert runs_at_once(runs, on_cuda, checkpointing=False) in (1, 2)


@pytest.mark.slow
def test_full_size_sdxl_predicts_with_two_packed_adapters(cuda: FakeCuda) -> None:
    """At 1024 px, in bf16 under autocast, with checkpointing: a LoRA on words too, and a DoRA."""
    config = SdxlModel(source="random", refiner=None, vae=None, precision="bf16")
    model = Sdxl(config, hollow_pipelines(config), device=CUDA)
    adapters = [
        LowRankAdapter(rank=8, text_encoders=True, **MIDDLE),
        LowRankAdapter(kind="dora", rank=16, **MIDDLE),
    ]
    fresh = [Fresh(adapter=adapter, seed=None) for adapter in adapters]
    with (
        fresh_accelerators(model.device, precision="bf16", count=1) as (accelerator,),
        model.attach(fresh, checkpointing=True) as trainable,
        accelerator.autocast(),
    ):
        predicted_BChw = trainable.predict(
            torch.zeros(2, 4, 128, 128, device=CUDA),
            torch.zeros(2, device=CUDA),
            ["wrong", "wrong"],
            torch.zeros(2, 6, device=CUDA),
            counts=[1, 1],
        )
    assert len(leaves(predicted_BChw)) > 600, "A and B of more than 300 layers are in the graph"
    assert is_fake(predicted_BChw) and predicted_BChw.dtype == torch.float32
    assert tuple(predicted_BChw.shape) == (2, 4, 128, 128)


HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
KINDS: dict[str, AdapterConfig] = {
    "lora": LowRankAdapter(rank=4, targets=EVERYWHERE, text_encoders=True),
    "dora": LowRankAdapter(kind="dora", rank=4, targets=EVERYWHERE),
    "word": TextualInversion(vectors=2),
}


def loss_and_gradients(
    model: Model, adapter: AdapterConfig, dtype: torch.dtype | None
) -> tuple[float, list[torch.Tensor]]:
    """Of one pass over three rows with an adapter that acts; under autocast where a dtype is given."""
    with attached(model, adapter, 0) as trainable:
        randomise(trainable)
        with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
            predicted_BChw = trainable.predict(*inputs(3))
        target_BChw = torch.randn(predicted_BChw.shape, generator=seeded(2))
        loss = mean_squared_error(predicted_BChw, target_BChw).sum()
        (1024 * loss).backward()  # scaled, as under fp16
        gradients = [p.grad / 1024 for p in parameters_of(trainable) if p.grad is not None]
    return loss.item(), gradients


@pytest.fixture(scope="module")
def emoji() -> Model:
    return load_model(EmojiModel(), device="cpu")


@pytest.mark.parametrize("precision", HALF)
def test_half_precision_gives_the_losses_and_gradients_of_fp32(emoji: Model, precision: str) -> None:
    """Within an eighth of the dtype's epsilon for a loss, and 16 epsilons of a gradient's norm.

    On the CPU, the base and autocast in the dtype, the adapter in fp32. The embedded model is trained, so its
    gradients are well conditioned; those of the tiny one differ between fp32 and fp64 by 0.6 %.
    """
    half = load_model(EmojiModel(), device="cpu")
    for part in (base_of(half).unet, base_of(half).text_encoder, base_of(half).text_encoder_2):
        part.to(HALF[precision])
    epsilon = torch.finfo(HALF[precision]).eps
    for adapter in KINDS.values():
        loss, gradients = loss_and_gradients(emoji, adapter, None)
        found, rounded = loss_and_gradients(half, adapter, HALF[precision])
        assert found == pytest.approx(loss, rel=epsilon / 8)
        for ours, exact in zip(rounded, gradients, strict=True):
            assert (ours - exact).norm() < 16 * epsilon * exact.norm()
