"""A run in a pack is the run alone, up to rounding.

Products of more rows are summed up in another order. Adam divides each gradient by its own size, so small
ones, which are mostly rounding, count as much as large ones: with a base in fp32 an adapter differs by 1e-4
of its norm after 3 steps and by 1e-2 after 100. Most tests have one in fp64,
so that nothing hides behind it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.config.plan.plan import TrainingRun
from harness.config.schema.adapter import LowRankAdapter
from harness.config.schema.model import EmojiModel
from harness.diffusion.models import load_model
from harness.diffusion.models.model import Model
from harness.diffusion.training import train
from harness.diffusion.training.checkpoint import Checkpoint
from harness.diffusion.training.run_state import Job
from harness.errors import HarnessError, TrainingError
from tests.diffusion.adapters.adapters import base_of
from tests.diffusion.tiny import tiny_config
from tests.diffusion.training.runs import apart, make_run, write_images

LORA = LowRankAdapter(rank=4)
EVERYWHERE = ("attention", "convolutions", "feed_forward")
# Every kind, ranks on both sides of the padding, other rates, batches, schedules, lengths, prompts and seeds.
RUNS: dict[str, dict[str, Any]] = {
    "plain": {"adapter": LORA, "batch_size": 1},
    "wide": {"adapter": LowRankAdapter(rank=12, alpha=3.0), "learning_rate": 5e-4, "seed": 1},
    "rslora": {"adapter": LowRankAdapter(kind="rslora", rank=2), "lora_plus_ratio": 4.0},
    "dora": {"adapter": LowRankAdapter(kind="dora", rank=3), "prompt": "a cat", "ema": 0.9},
    "everywhere": {"adapter": LowRankAdapter(rank=5, targets=EVERYWHERE), "noise_offset": 0.1},
    "dora everywhere": {"adapter": LowRankAdapter(kind="dora", rank=2, targets=EVERYWHERE, dropout=0.2)},
    "words": {"adapter": LowRankAdapter(rank=2, text_encoders=True), "text_encoder_learning_rate": 1e-4},
    "dropout": {"adapter": LowRankAdapter(rank=4, dropout=0.3), "min_snr_gamma": 5.0},
    "accumulating": {"adapter": LORA, "batch_size": 1, "gradient_accumulation": 3, "max_grad_norm": 0.01},
    "prodigy": {"adapter": LORA, "optimizer": {"kind": "prodigy"}, "learning_rate": 1.0},
    "held out": {"adapter": LORA, "holdout": 2, "schedule": {"kind": "cosine", "warmup_steps": 1}},
    "blocks": {"adapter": LowRankAdapter(rank=8, blocks=("mid_block",)), "checkpoints": (2, 3)},
}

ROUNDING = 1e-9  # with a base in fp64


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def emoji() -> Model:
    """Its UNet and text encoders in fp64."""
    model = load_model(EmojiModel(), device="cpu")
    base = base_of(model)
    for part in (base.unet, base.text_encoder, base.text_encoder_2):
        part.double()
    return model


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"), seed=0)


class Together:
    """Trains runs in one call and keeps what comes out of each."""

    def __init__(self, model: Model, images: Path) -> None:
        self.model, self.images = model, images
        self.saved: dict[str, dict[int, Checkpoint]] = {}
        self.seconds: dict[str, float] = {}
        self.reported: dict[str, list[int]] = {}
        self.ended: dict[str, HarnessError | None] = {}
        self.order: list[tuple[str, int]] = []

    def train(
        self, runs: dict[str, TrainingRun], *, at_once: int, resume: dict[str, Checkpoint] | None = None
    ) -> "Together":
        jobs = (self._job(name, run, (resume or {}).get(name)) for name, run in runs.items())
        train(jobs, self.model, at_once=at_once)
        return self

    def _job(self, name: str, run: TrainingRun, resume: Checkpoint | None) -> Job:
        self.saved[name], self.reported[name] = {}, []

        def save(checkpoint: Checkpoint, seconds: float) -> None:
            self.saved[name][checkpoint.step] = checkpoint
            self.seconds[name] = seconds

        def report(step: int, loss: float) -> None:
            self.reported[name].append(step)
            self.order.append((name, step))

        return Job(
            run=run,
            images=self.images,
            prior=None,
            latents=(),
            resume=resume,
            save=save,
            save_at=lambda step: False,
            report=report,
            ended=lambda error: self.ended.__setitem__(name, error),
        )


def make(model: Model, names: Sequence[str], **changes: Any) -> dict[str, TrainingRun]:
    return {
        name: make_run(model, **{"checkpoints": (3,), "batch_size": 2, **RUNS[name], **changes})
        for name in names
    }


@pytest.fixture(scope="module")
def alone(emoji: Model, images: Path) -> Together:
    """Every run alone."""
    return Together(emoji, images).train(make(emoji, list(RUNS)), at_once=1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "arrange", [list, lambda names: names[::-1]], ids=["in order", "the other way round"]
)
def test_packed_runs_equal_those_alone(
    emoji: Model, images: Path, alone: Together, arrange: Callable[[list[str]], list[str]]
):
    """All kinds of runs in one pack: weights, averages, losses; whatever is beside them."""
    runs = make(emoji, arrange(list(RUNS)))
    packed = Together(emoji, images).train(runs, at_once=len(runs))
    for name in runs:
        assert packed.ended[name] is None and list(packed.saved[name]) == list(alone.saved[name])
        for step, checkpoint in alone.saved[name].items():
            assert apart(packed.saved[name][step], checkpoint) <= ROUNDING, name
            ours, theirs = packed.saved[name][step].validation, checkpoint.validation
            assert ours == (None if theirs is None else pytest.approx(theirs, rel=ROUNDING))
    first_steps = packed.order[: len(runs)]
    assert [step for _, step in first_steps] == [1] * len(runs)  # they went together


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "rounding"), [("fp64", ROUNDING), ("fp32", 0.03)])
def test_packed_runs_equal_those_alone_after_100_steps(
    emoji: Model, images: Path, precision: str, rounding: float
):
    if precision == "fp32":
        emoji = load_model(EmojiModel(), device="cpu")
    runs = make(emoji, ["plain", "wide", "dora"], checkpoints=(100,))
    packed, alone = (Together(emoji, images).train(runs, at_once=at_once) for at_once in (3, 1))
    for name in runs:
        assert apart(packed.saved[name][100], alone.saved[name][100]) <= rounding


@pytest.mark.slow
def test_in_half_precision_a_pack_differs_no_more_than_another_batch_size(tiny_folder: Path, images: Path):
    """Rounding alone: that of a pack is no larger than that of the same rows in passes of another size."""
    config = tiny_config(tiny_folder, refiner=False).model_copy(update={"precision": "bf16"})
    half = load_model(config, device="cpu")
    beside = make(half, ["rslora", "wide", "dora"], checkpoints=(8,))
    whole = {"run": make_run(half, adapter=LORA, batch_size=2, checkpoints=(8,))}
    halves = {"run": make_run(half, adapter=LORA, batch_size=1, gradient_accumulation=2, checkpoints=(8,))}
    alone, other, packed = (
        torch.cat([tensor.flatten() for tensor in made.saved["run"][8].adapter.values()])
        for made in (
            Together(half, images).train(whole, at_once=1),
            Together(half, images).train(halves, at_once=1),
            Together(half, images).train({**whole, **beside}, at_once=4),
        )
    )
    assert (other - alone).norm() > 0
    assert (packed - alone).norm() <= (other - alone).norm()


def test_runs_enter_as_others_end(emoji: Model, images: Path, alone: Together):
    runs = make(emoji, ["plain", "held out", "dropout", "rslora"])
    runs["plain"] = make(emoji, ["plain"], checkpoints=(1,))["plain"]
    staggered = Together(emoji, images).train(runs, at_once=2)
    for name in ("held out", "dropout", "rslora"):
        assert apart(staggered.saved[name][3], alone.saved[name][3]) <= ROUNDING
    # "plain" leaves after its only step, and "dropout" takes its place beside "held out".
    assert staggered.order[:4] == [("plain", 1), ("held out", 1), ("held out", 2), ("dropout", 1)]
    assert all(staggered.reported[name] == [1, 2, 3] for name in ("held out", "dropout", "rslora"))


def test_a_run_that_diverges_leaves_and_the_others_do_not_notice(emoji: Model, images: Path, alone: Together):
    runs = make(emoji, ["plain", "dora"])
    runs["bad"] = make_run(emoji, adapter=LORA, learning_rate=1e30, checkpoints=(3,), seed=7)
    mixed = Together(emoji, images).train(runs, at_once=3)
    assert isinstance(mixed.ended["bad"], TrainingError) and "learning rate 1e+30" in str(mixed.ended["bad"])
    for name in ("plain", "dora"):
        assert mixed.ended[name] is None
        assert apart(mixed.saved[name][3], alone.saved[name][3]) <= ROUNDING


def test_a_checkpoint_goes_on_in_other_company(emoji: Model, images: Path, tmp_path: Path):
    """Saved beside a wide run, resumed beside a narrow one."""
    runs = make(emoji, ["dora", "wide"], checkpoints=(2, 4))
    whole = Together(emoji, images).train(runs, at_once=2)
    whole.saved["dora"][2].write(tmp_path)
    others = {"dora": runs["dora"], **make(emoji, ["rslora"])}
    resumed = Together(emoji, images).train(others, at_once=2, resume={"dora": Checkpoint.read(tmp_path)})
    assert apart(resumed.saved["dora"][4], whole.saved["dora"][4]) <= ROUNDING
    assert list(resumed.saved["dora"]) == [4]


def test_a_run_that_does_not_fit_the_model_ends_alone(emoji: Model, images: Path):
    runs = make(emoji, ["plain", "blocks"])
    runs["blocks"] = replace(runs["blocks"], adapter=LowRankAdapter(blocks=("up_blocks.7",)))
    made = Together(emoji, images).train(runs, at_once=2)
    assert made.ended["plain"] is None and list(made.saved["plain"]) == [3]
    assert "up_blocks.7" in str(made.ended["blocks"])


def test_a_pack_too_large_for_the_memory_is_halved(
    emoji: Model, images: Path, monkeypatch: pytest.MonkeyPatch, alone: Together
):
    """PyTorch's own error on an accelerator, raised here where more than two runs are in a pass."""
    from harness.diffusion.models.attach import TrainablePack

    predict, sizes = TrainablePack.predict, []

    def short_of_memory(self: TrainablePack, *given: Any, **options: Any) -> torch.Tensor:
        sizes.append(len(self.members))
        if len(self.members) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return predict(self, *given, **options)

    monkeypatch.setattr(TrainablePack, "predict", short_of_memory)
    names = ["plain", "rslora", "dropout", "held out"]
    made = Together(emoji, images).train(make(emoji, names), at_once=4)
    assert sizes[0] == 4 and set(sizes[1:]) == {2}
    assert all(made.ended[name] is None and list(made.saved[name]) == [3] for name in names)


def test_no_gradient_crosses_runs(emoji: Model):
    """The loss of one member's rows moves no other member's parameters: exactly zero."""
    from harness.diffusion.models.model import Fresh

    fresh = [Fresh(adapter=RUNS[name]["adapter"], seed=0) for name in ("plain", "dora", "everywhere")]
    with emoji.attach(fresh) as trainable:
        generator = torch.Generator().manual_seed(0)
        for member in trainable.members:  # as if trained: then every part bears on its rows
            state = member.state_dict()
            member.load_state_dict(
                {key: t + 0.05 * torch.randn(t.shape, generator=generator) for key, t in state.items()}
            )
        noisy = torch.randn(4, 8, 8, 8, generator=generator)
        time_ids = torch.tensor([[64, 64, 0, 0, 64, 64]] * 4)
        predicted = trainable.predict(
            noisy, torch.tensor([10, 300, 500, 900]), ["wrong"] * 4, time_ids, counts=[1, 2, 1]
        )
        predicted[1:3].square().sum().backward()
        norms = [
            torch.stack([p.grad.norm() for group in member.groups() for p in group.parameters]).sum()  # type: ignore[union-attr]
            for member in trainable.members
        ]
    assert norms[0] == norms[2] == 0 and norms[1] > 0


def test_a_packs_time_is_shared_out(emoji: Model, images: Path):
    import time

    runs = make(emoji, ["plain", "rslora"])
    started = time.monotonic()
    made = Together(emoji, images).train(runs, at_once=2)
    whole = time.monotonic() - started
    assert 0 < sum(made.seconds.values()) <= whole
    assert made.seconds["plain"] == pytest.approx(made.seconds["rslora"], rel=0.5)
