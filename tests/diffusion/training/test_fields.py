"""An axis that varies nothing is the worst fault of a sweep: every field changes the adapter's bytes."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pydantic import BaseModel

from harness.config.plan.plan import Dataset, TrainingRun
from harness.config.schema.adapter import LowRankAdapter, OftAdapter, ProductAdapter, TextualInversion
from harness.config.schema.base import fingerprint
from harness.config.schema.model import EmojiModel
from harness.config.schema.recipe import FolderRecipe
from harness.config.schema.sweep import TrialConfig
from harness.config.schema.training import (
    OptimizerConfig,
    PriorConfig,
    ScheduleConfig,
    TimestepConfig,
    TrainingConfig,
)
from harness.diffusion.models.model import Model
from harness.diffusion.training import train
from harness.diffusion.training.checkpoint import Checkpoint
from harness.diffusion.training.run_state import Job
from tests.diffusion.training.runs import digest, raise_it, write_images

Change = tuple[dict[str, Any], dict[str, Any]]

SPECS: dict[str, type[BaseModel]] = {
    "adapter": LowRankAdapter,
    "product": ProductAdapter,
    "turn": OftAdapter,
    "words": TextualInversion,
    "training": TrainingConfig,
    "training.optimizer": OptimizerConfig,
    "training.schedule": ScheduleConfig,
    "training.timesteps": TimestepConfig,
    "training.prior": PriorConfig,
}


def fields() -> Iterator[str]:
    """Every field by its dotted name; a specification of its own stands for what is in it."""
    for section, config in SPECS.items():
        yield from (f"{section}.{name}" for name in config.model_fields if f"{section}.{name}" not in SPECS)


def folder(name: str) -> dict[str, Any]:
    return {"kind": "folder", "path": name, "digest": name, "captioned": True}


def prior(**changes: Any) -> dict[str, Any]:
    return {"prompt": "a fox", "recipe": folder("class"), **changes}


def words(**changes: Any) -> dict[str, Any]:
    word = {"kind": "textual_inversion", "word": "red", "vectors": 2, **changes}
    return {"adapter": word, "training.prompt": "red blue"}


def product(**changes: Any) -> dict[str, Any]:
    return {"adapter": {"kind": "lokr", "rank": 2, "factor": 8, **changes}}


def turn(**changes: Any) -> dict[str, Any]:
    return {"adapter": {"kind": "oft", "block_size": 8, **changes}}


LOGIT = {"training.timesteps.distribution": "logit_normal"}
# Prodigy's first estimates are its floor of 1e-6.
PRODIGY = {"training.optimizer.kind": "prodigy", "training.learning_rate": 1.0, "training.steps": 5}
BOTH_ENCODERS = {"adapter.text_encoders": True}
CHANGES: dict[str, Change] = {
    "adapter.kind": ({}, {"adapter.kind": "rslora"}),
    "adapter.rank": ({}, {"adapter.rank": 3}),
    "adapter.alpha": ({}, {"adapter.alpha": "sqrt_rank"}),
    "adapter.init": ({}, {"adapter.init": "gaussian"}),
    "adapter.dropout": ({}, {"adapter.dropout": 0.5}),
    "adapter.targets": ({}, {"adapter.targets": ["attention", "feed_forward"]}),
    "adapter.blocks": ({}, {"adapter.blocks": ["mid_block"]}),
    "adapter.text_encoders": ({}, BOTH_ENCODERS),
    "adapter.text_encoder_targets": (
        BOTH_ENCODERS,
        {**BOTH_ENCODERS, "adapter.text_encoder_targets": ["attention", "mlp"]},
    ),
    "product.kind": (product(factor=None), product(factor=None, kind="loha")),
    "product.rank": (product(), product(rank=3)),
    "product.alpha": (product(), product(alpha="sqrt_rank")),
    "product.factor": (product(), product(factor=4)),
    "product.targets": (product(), product(targets=["attention", "feed_forward"])),
    "product.blocks": (product(), product(blocks=["mid_block"])),
    "turn.kind": ({}, turn()),
    "turn.block_size": (turn(), turn(block_size=4)),
    "turn.targets": (turn(), turn(targets=["attention", "feed_forward"])),
    "turn.blocks": (turn(), turn(blocks=["mid_block"])),
    "words.kind": ({"training.prompt": "red blue"}, words()),
    "words.word": (words(), words(word="blue")),
    "words.vectors": (words(), words(vectors=3)),
    "words.initial": (words(), words(initial="cat")),
    "training.prompt": ({}, {"training.prompt": "{caption}"}),
    "training.caption_dropout": ({}, {"training.caption_dropout": 0.9}),
    "training.steps": ({}, {"training.steps": 3}),
    "training.learning_rate": ({}, {"training.learning_rate": 2e-3}),
    "training.text_encoder_learning_rate": (
        BOTH_ENCODERS,
        {**BOTH_ENCODERS, "training.text_encoder_learning_rate": 1e-5},
    ),
    "training.lora_plus_ratio": ({}, {"training.lora_plus_ratio": 16}),
    "training.optimizer.kind": ({"training.learning_rate": 1.0, "training.steps": 5}, PRODIGY),
    "training.optimizer.weight_decay": ({}, {"training.optimizer.weight_decay": 0.5}),
    "training.optimizer.betas": ({}, {"training.optimizer.betas": [0.5, 0.9]}),
    "training.optimizer.d_coef": (PRODIGY, {**PRODIGY, "training.optimizer.d_coef": 2.0}),
    "training.schedule.kind": ({}, {"training.schedule.kind": "cosine"}),
    "training.schedule.warmup_steps": ({}, {"training.schedule.warmup_steps": 1}),
    "training.batch_size": ({}, {"training.batch_size": 2}),
    "training.gradient_accumulation": ({}, {"training.gradient_accumulation": 2}),
    "training.max_grad_norm": ({}, {"training.max_grad_norm": 1e-3}),
    "training.min_snr_gamma": ({}, {"training.min_snr_gamma": 0.1}),
    "training.noise_offset": ({}, {"training.noise_offset": 0.1}),
    "training.timesteps.distribution": ({}, LOGIT),
    "training.timesteps.lowest": ({}, {"training.timesteps.lowest": 500}),
    "training.timesteps.highest": ({}, {"training.timesteps.highest": 500}),
    "training.timesteps.mean": (LOGIT, {**LOGIT, "training.timesteps.mean": 1.0}),
    "training.timesteps.deviation": (LOGIT, {**LOGIT, "training.timesteps.deviation": 0.5}),
    "training.crop": ({}, {"training.crop": "random"}),
    "training.flip": ({}, {"training.flip": True}),
    "training.prior.prompt": ({"training.prior": prior()}, {"training.prior": prior(prompt="a cat")}),
    "training.prior.recipe": (
        {"training.prior": prior()},
        {"training.prior": prior(recipe=folder("other"))},
    ),
    "training.prior.weight": ({"training.prior": prior()}, {"training.prior": prior(weight=0.5)}),
    "training.ema": ({"training.ema": 0.9}, {"training.ema": 0.99}),
    "training.holdout": ({}, {"training.holdout": 2}),
    "training.seed": ({}, {"training.seed": 1}),
}
OF_OTHER_MODELS = ("training.min_snr_v",)  # of v-predicting ones: test_loss.py
SWITCHES: dict[str, Change] = {  # null against a value
    "training.prior": ({}, {"training.prior": prior()}),
    "training.ema": ({}, {"training.ema": 0.9}),
}
PLAIN: dict[str, Any] = {
    "model": EmojiModel().model_dump(),
    "recipe": folder("own"),
    "adapter": {"kind": "lora", "rank": 2},
    "training": {
        "prompt": "red",
        "steps": 2,
        "learning_rate": 1e-3,
        "batch_size": 1,
        "optimizer": {},
        "schedule": {},
        "timesteps": {},
    },
}


def changed(raw: dict[str, Any], dotted: str, value: Any) -> dict[str, Any]:
    head, _, rest = dotted.partition(".")
    return {**raw, head: changed(raw[head], rest, value) if rest else value}


def spec_of(changes: dict[str, Any]) -> TrialConfig:
    raw = PLAIN
    for dotted, value in changes.items():
        raw = changed(raw, dotted, value)
    return TrialConfig.model_validate(raw)


def run_of(config: TrialConfig) -> TrainingRun:
    def dataset(recipe: Any) -> Dataset:
        return Dataset(dataset_id=str(recipe.path), model=config.model, recipe=recipe)

    adapter, training = config.trained.adapter, config.trained.training
    prior = training.prior
    return TrainingRun(
        run_id=fingerprint("run", config=config),
        dataset=dataset(config.recipe),
        adapter=adapter,
        training=training,
        checkpoints=(training.steps,),
        prior=None if prior is None else dataset(prior.recipe),
    )


@pytest.fixture(scope="module")
def emoji() -> Model:
    from harness.diffusion.models import load_model

    return load_model(EmojiModel(), device="cpu")


@pytest.fixture(scope="module")
def exported(emoji: Model, tmp_path_factory: pytest.TempPathFactory) -> Callable[[TrialConfig], str]:
    """The bytes that a trial's training gives: the adapter and, where there is one, its average."""
    root = tmp_path_factory.mktemp("datasets")
    for seed, name in enumerate(("own", "class", "other")):
        write_images(root / name, seed=seed, size=(96, 64), original_size=(300, 200))

    known: dict[str, str] = {}

    def export(config: TrialConfig, *, again: bool = False) -> str:
        run = run_of(config)
        if again or run.run_id not in known:
            known[run.run_id] = trained(run)
        return known[run.run_id]

    def trained(run: TrainingRun) -> str:
        saved: list[Checkpoint] = []
        assert isinstance(run.dataset.recipe, FolderRecipe)
        job = Job(
            run=run,
            images=root / run.dataset.recipe.path,
            prior=None if run.prior is None else root / run.prior.dataset_id,
            latents=(),
            resume=None,
            save=lambda checkpoint, seconds: saved.append(checkpoint),
            save_at=lambda step: False,
            report=lambda step, loss: None,
            ended=raise_it,
        )
        train([job], emoji)
        (last,) = saved
        return digest(last.adapter) + (digest(last.ema) if last.ema else "")

    return export


def test_the_table_has_every_field() -> None:
    assert sorted([*CHANGES, *OF_OTHER_MODELS]) == sorted(fields())


@pytest.mark.parametrize(
    "change",
    [*CHANGES.values(), *SWITCHES.values()],
    ids=[*CHANGES, *(f"{name} switched on" for name in SWITCHES)],
)
def test_a_field_changes_the_adapter(change: Change, exported: Callable[[TrialConfig], str]) -> None:
    before, after = (spec_of(changes) for changes in change)
    for config in (before, after):
        if config.trained.training.optimizer.kind == "prodigy":
            pytest.importorskip("prodigyopt")
    assert exported(before) != exported(after)


def test_the_same_fields_give_the_same_adapter(exported: Callable[..., str]) -> None:
    assert exported(spec_of({})) == exported(spec_of({}), again=True)
