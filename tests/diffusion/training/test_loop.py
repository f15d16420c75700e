"""The contract of training, on a tiny SDXL."""

from pathlib import Path
from typing import Any

import pytest
import torch

from harness.config.schema.adapter import LowRankAdapter, TextualInversion
from harness.config.schema.model import SdxlModel
from harness.diffusion.models.model import Model, Posterior
from harness.diffusion.training.checkpoint import Checkpoint
from harness.diffusion.training.data import read_images
from harness.errors import ArtifactError, TrainingError
from tests.diffusion.training.runs import Outcome, Trainer, digest, same, write_images


def unet_digest(model: Model) -> str:
    return digest(model._unet.state_dict())  # type: ignore[attr-defined]


def test_a_checkpoint_of_a_longer_run_equals_a_shorter_run(run_training: Trainer) -> None:
    long = run_training(checkpoints=(2, 4, 7))
    assert list(long.saved) == [2, 4, 7]
    for steps in (2, 4, 7):
        assert same(run_training(checkpoints=(steps,)).saved[steps], long.saved[steps])


@pytest.mark.parametrize("accumulation", [1, 3])
def test_a_resumed_run_equals_one_never_killed(
    run_training: Trainer, tmp_path: Path, accumulation: int
) -> None:
    settings: dict[str, Any] = {
        "checkpoints": (4, 7),
        "gradient_accumulation": accumulation,
        "schedule": {"warmup_steps": 5},
    }
    whole = run_training(**settings)

    class Killed(Exception):
        pass

    def kill_after_5(step: int) -> bool:
        if step == 6:
            raise Killed
        return step == 3

    killed = Outcome()
    with pytest.raises(Killed):
        run_training(**settings, save_at=kill_after_5, outcome=killed)
    assert list(killed.saved) == [3, 4]
    for step in (3, 4):
        killed.saved[step].write(tmp_path / str(step))
        resumed = run_training(**settings, resume=Checkpoint.read(tmp_path / str(step)))
        assert list(resumed.saved) == [checkpoint for checkpoint in (4, 7) if checkpoint > step]
        assert all(same(state, whole.saved[at]) for at, state in resumed.saved.items())
        assert resumed.reported == whole.reported[step:]


EVERYTHING: dict[str, Any] = {
    "adapter": LowRankAdapter(rank=2, dropout=0.3, text_encoders=True),
    "prompt": "wrong {caption}",
    "caption_dropout": 0.3,
    "noise_offset": 0.1,
    "min_snr_gamma": 5.0,
    "crop": "random",
    "flip": True,
    "prior": {"prompt": "a fox", "recipe": {"kind": "folder", "path": "class"}},
    "ema": 0.9,
    "holdout": 1,
    "schedule": {"kind": "cosine", "warmup_steps": 1},
    "timesteps": {"distribution": "logit_normal"},
    "checkpoints": (3,),
}


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("wide"), seed=2, size=(96, 64), original_size=(300, 200))


def test_a_run_with_everything_on_resumes_bit_for_bit(
    run_training: Trainer, wide: Path, images: Path, tmp_path: Path
) -> None:
    settings = {**EVERYTHING, "dataset": wide, "class_images": images}
    whole = run_training(**settings, save_at=lambda step: step == 1)
    whole.saved[1].write(tmp_path)
    resumed = run_training(**settings, resume=Checkpoint.read(tmp_path))
    assert same(resumed.saved[3], whole.saved[3])
    assert resumed.saved[3].validation == whole.saved[3].validation
    again = run_training(**settings, checkpointing=True).saved[3]  # draws the dropped numbers twice
    assert again.losses == pytest.approx(whole.saved[3].losses, rel=1e-5)


@pytest.mark.parametrize(("kind", "package"), [("prodigy", "prodigyopt"), ("adamw_8bit", "bitsandbytes")])
def test_other_optimizers_resume_bit_for_bit(
    run_training: Trainer, tmp_path: Path, kind: str, package: str
) -> None:
    pytest.importorskip(package)
    settings = {
        "optimizer": {"kind": kind},
        "checkpoints": (2, 4),
        "learning_rate": 1.0,
        "adapter": LowRankAdapter(),
    }
    whole = run_training(**settings)
    whole.saved[2].write(tmp_path)
    assert same(run_training(**settings, resume=Checkpoint.read(tmp_path)).saved[4], whole.saved[4])


def test_a_random_crop_of_square_images_is_an_error(run_training: Trainer) -> None:
    """It would do nothing."""
    with pytest.raises(TrainingError, match=r"training\.crop: random .* square"):
        run_training(crop="random")


def test_held_out_losses_are_at_fixed_noise(run_training: Trainer) -> None:
    """Whatever the seed, the rate or the steps between: what is measured is the adapter alone."""
    settings: dict[str, Any] = {"holdout": 2, "checkpoints": (1, 2), "save_at": lambda step: True}
    idle = {"learning_rate": 1e-12, "min_snr_gamma": 5.0, "noise_offset": 0.5, "caption_dropout": 0.5}
    one, other = (run_training(**settings, **idle, seed=seed).saved for seed in (0, 1))
    assert one[2].validation is not None and other[2].validation is not None
    assert list(one[2].validation) == [1, 2]
    assert one[2].validation[1] == pytest.approx(one[2].validation[2], rel=1e-4)
    assert one[2].validation[2] == pytest.approx(other[2].validation[2], rel=1e-4)
    assert run_training().saved[3].validation is None


def test_held_out_losses_change_nothing(run_training: Trainer) -> None:
    often, once = (run_training(holdout=1, checkpoints=at).saved[3] for at in ((1, 2, 3), (3,)))
    assert same(often, once)


def test_rows_without_the_word_teach_it_nothing(run_training: Trainer) -> None:
    """All captions dropped: no gradient reaches the vectors, and that is no error."""
    word = TextualInversion(word="wrong", vectors=1)
    settings: dict[str, Any] = {"adapter": word, "batch_size": 1, "optimizer": {"weight_decay": 0.0}}
    adapter = run_training(**settings, caption_dropout=0.9999, checkpoints=(1,)).saved[1].adapter
    assert torch.equal(adapter["clip_l"], adapter["clip_l_start"])
    learnt = run_training(**settings, checkpoints=(1,)).saved[1].adapter
    assert not torch.equal(learnt["clip_l"], learnt["clip_l_start"])


def test_memory_that_runs_out_is_explained(
    run_training: Trainer, tiny_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(images: object) -> Posterior:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(tiny_model, "encode_images", full)
    with pytest.raises(TrainingError, match=r"compute\.gradient_checkpointing"):
        run_training()


def test_nothing_is_done_where_the_last_checkpoint_exists(run_training: Trainer) -> None:
    done = run_training(checkpoints=(3,)).saved[3]
    assert run_training(checkpoints=(2, 3), resume=done) == Outcome()


def test_saving_changes_nothing(run_training: Trainer) -> None:
    often = run_training(checkpoints=(5,), save_at=lambda step: True)
    assert list(often.saved) == [1, 2, 3, 4, 5]
    assert same(often.saved[5], run_training(checkpoints=(5,)).saved[5])


def test_every_step_is_reported_and_kept(run_training: Trainer) -> None:
    outcome = run_training(checkpoints=(4,))
    assert [step for step, _ in outcome.reported] == [1, 2, 3, 4]
    assert [loss for _, loss in outcome.reported] == outcome.saved[4].losses


def test_the_alpha_changes_what_is_learnt_and_not_only_its_scale(run_training: Trainer) -> None:
    adapters = [LowRankAdapter(rank=4, alpha=alpha) for alpha in ("rank", "sqrt_rank", 1.0)]
    assert len({digest(run_training(adapter=adapter).saved[3].adapter) for adapter in adapters}) == 3


def test_other_images_give_another_adapter(run_training: Trainer, tmp_path: Path) -> None:
    other = write_images(tmp_path, seed=1)
    assert digest(run_training().saved[3].adapter) != digest(run_training(dataset=other).saved[3].adapter)


def test_accumulating_equals_a_larger_batch(run_training: Trainer) -> None:
    """Up to rounding: the rows of a step are numbered through all its forward passes."""
    whole = run_training(checkpoints=(1,), batch_size=4).saved[1]
    parts = run_training(checkpoints=(1,), batch_size=1, gradient_accumulation=4).saved[1]
    assert parts.losses == pytest.approx(whole.losses, rel=1e-3)
    moments = [name for name in whole.optimizer if name.endswith(".exp_avg")]
    one, other = (torch.cat([c.optimizer[name].flatten() for name in moments]) for c in (whole, parts))
    assert torch.cosine_similarity(one, other, dim=0) > 0.999


def test_the_learning_rate_is_warmed_up_and_then_constant(run_training: Trainer) -> None:
    """Adam's first step moves every weight with a gradient by about the learning rate."""
    config = {"optimizer": {"weight_decay": 0.0}, "checkpoints": (1,), "learning_rate": 1e-3}
    up = "lora_B"  # starts at zero, so that its value is what it moved by
    for warmup in (0, 1, 4):
        adapter = run_training(**config, schedule={"warmup_steps": warmup}).saved[1].adapter
        moved = torch.cat([tensor.flatten() for name, tensor in adapter.items() if up in name]).abs()
        assert moved.median() == pytest.approx(1e-3 / (warmup + 1), rel=0.02)


def test_the_loss_falls_where_one_image_is_overfitted(
    run_training: Trainer, tiny_model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against a run that learns nothing: images, timesteps and noise of a step are the same in both."""
    one = write_images(tmp_path, seed=0, count=1)
    (image,) = read_images(one, resolution=64)
    blurred = tiny_model.encode_images([image.pixels()])  # its random VAE is nearly all noise
    sharp = Posterior(
        mean_NChw=blurred.mean_NChw / blurred.mean_NChw.std(), std_NChw=torch.zeros_like(blurred.std_NChw)
    )
    monkeypatch.setattr(tiny_model, "encode_images", lambda images: sharp)
    learnt, idle = (
        run_training(checkpoints=(40,), dataset=one, learning_rate=rate, rank=8, batch_size=4)
        .saved[40]
        .losses
        for rate in (3e-2, 1e-12)
    )
    assert learnt[0] == idle[0]
    assert sum(learnt[-20:]) < 0.985 * sum(idle[-20:])


def test_the_model_and_all_global_state_are_left_as_found(run_training: Trainer, tiny_model: Model) -> None:
    from accelerate.state import AcceleratorState, GradientState, PartialState

    states = (PartialState, AcceleratorState, GradientState)
    before = unet_digest(tiny_model), [dict(state._shared_state) for state in states]
    random = torch.random.get_rng_state()
    run_training(gradient_accumulation=2)
    assert before == (unet_digest(tiny_model), [dict(state._shared_state) for state in states])
    assert torch.equal(random, torch.random.get_rng_state())


def test_runs_one_after_another_do_not_touch_each_other(run_training: Trainer) -> None:
    alone = run_training(gradient_accumulation=2).saved[3]
    run_training(gradient_accumulation=3, rank=2)
    assert same(run_training(gradient_accumulation=2).saved[3], alone)


def test_global_random_numbers_do_not_matter(run_training: Trainer) -> None:
    """Dropout draws from them, so each pass sets them to its own."""
    adapter = LowRankAdapter(rank=4, dropout=0.5)
    torch.manual_seed(1)
    one = run_training(adapter=adapter).saved[3]
    torch.manual_seed(2)
    before = torch.random.get_rng_state()
    assert same(run_training(adapter=adapter).saved[3], one)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_adapter_and_optimizer_are_fp32_under_a_bf16_base(
    run_training: Trainer, tiny_config: SdxlModel
) -> None:
    """bf16 has 8 bits: an update of 1e-5 on a weight of 0.1 would vanish."""
    from harness.diffusion.models import load_model

    half = load_model(tiny_config.model_copy(update={"precision": "bf16"}), device="cpu")
    before = unet_digest(half)
    saved = run_training(
        model=half, learning_rate=1e-5, checkpoints=(1, 3), optimizer={"weight_decay": 0.0}
    ).saved
    for checkpoint in saved.values():
        tensors = [*checkpoint.adapter.values(), *checkpoint.optimizer.values()]
        assert {tensor.dtype for tensor in tensors} == {torch.float32}
    down = [name for name in saved[1].adapter if "lora_A" in name]
    moved = [not torch.equal(saved[1].adapter[name], saved[3].adapter[name]) for name in down]
    assert all(moved)
    rounded = [not torch.equal(saved[3].adapter[n], saved[3].adapter[n].bfloat16().float()) for n in down]
    assert all(rounded)
    assert unet_digest(half) == before


def test_a_bf16_run_resumes_bit_for_bit(
    run_training: Trainer, tiny_config: SdxlModel, tmp_path: Path
) -> None:
    from harness.diffusion.models import load_model

    half = load_model(tiny_config.model_copy(update={"precision": "bf16"}), device="cpu")
    whole = run_training(model=half, checkpoints=(2, 4))
    whole.saved[2].write(tmp_path)
    resumed = run_training(model=half, checkpoints=(4,), resume=Checkpoint.read(tmp_path))
    assert same(resumed.saved[4], whole.saved[4])


def test_a_checkpoint_of_another_run_is_refused(run_training: Trainer) -> None:
    other = run_training(seed=1, checkpoints=(2,)).saved[2]
    with pytest.raises(TrainingError, match=f"of run {other.run_id}, not of"):
        run_training(checkpoints=(4,), resume=other)


def change_shape(tensors: dict[str, torch.Tensor]) -> None:
    name = next(name for name in tensors if tensors[name].ndim)
    tensors[name] = tensors[name][:-1]


def lose_tensor(tensors: dict[str, torch.Tensor]) -> None:
    tensors.popitem()


def add_tensor(tensors: dict[str, torch.Tensor]) -> None:
    tensors["9999.exp_avg"] = torch.zeros(1)


@pytest.mark.parametrize("part", ["adapter", "optimizer"])
@pytest.mark.parametrize("change", [change_shape, lose_tensor, add_tensor])
def test_a_checkpoint_of_other_shapes_is_refused(run_training: Trainer, part: str, change: Any) -> None:
    resume = run_training(checkpoints=(2,)).saved[2]
    change(getattr(resume, part))
    with pytest.raises(TrainingError, match=f"checkpoint's {part} is not of this run") as caught:
        run_training(checkpoints=(4,), resume=resume)
    assert "\n" not in str(caught.value)


def test_a_refused_checkpoint_leaves_the_model_as_found(run_training: Trainer, tiny_model: Model) -> None:
    before = unet_digest(tiny_model)
    resume = run_training(checkpoints=(2,)).saved[2]
    resume.adapter.popitem()
    with pytest.raises(TrainingError):
        run_training(checkpoints=(4,), resume=resume)
    assert unet_digest(tiny_model) == before
    run_training()


def test_nothing_is_saved_after_the_loss_became_nan(run_training: Trainer) -> None:
    outcome = Outcome()
    with pytest.raises(TrainingError, match=r"at step \d+ \(learning rate 1e\+30\); try a lower") as caught:
        run_training(
            learning_rate=1e30,
            checkpoints=(1, 50),
            save_at=lambda step: True,
            outcome=outcome,
            optimizer={"weight_decay": 0.0},
        )
    assert "\n" not in str(caught.value)
    assert len(outcome.saved) == len(outcome.reported) < 50
    for checkpoint in outcome.saved.values():
        assert all(tensor.isfinite().all() for tensor in checkpoint.adapter.values())


def test_weights_that_overflow_with_a_finite_loss_are_not_saved(run_training: Trainer) -> None:
    outcome = Outcome()
    with pytest.raises(TrainingError, match="weights are no longer finite at step 1"):
        run_training(learning_rate=1e39, checkpoints=(1,), outcome=outcome)
    assert outcome.saved == {}


def test_a_damaged_dataset_stops_training_before_it_starts(run_training: Trainer, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="damaged"):
        run_training(dataset=tmp_path)
