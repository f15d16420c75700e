"""Identity: every field either changes the ids or is marked NOT_HASHED and changes none."""

import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest

from harness.config.schema.adapter import (
    GivenAdapter,
    HubFile,
    LowRankAdapter,
    OftAdapter,
    ProductAdapter,
    TextualInversion,
)
from harness.config.schema.base import NOT_HASHED, Frozen, fingerprint, identity
from harness.config.schema.model import EmojiModel, SdxlModel
from harness.config.schema.recipe import DegradeRecipe, FolderRecipe, KeywordsRecipe, PlainRecipe
from harness.config.schema.sweep import TrialConfig
from harness.config.schema.training import (
    OptimizerConfig,
    PriorConfig,
    ScheduleConfig,
    TimestepConfig,
    TrainingConfig,
)

DRAWN = {"name": "other", "steps": 7, "refiner_start": None, "seed": 9}
PLAIN = PlainRecipe(prompts=("a cat",))
HUB = HubFile(id="some/lora", revision="a")
SECTIONS: list[tuple[Frozen, dict[str, Any]]] = [
    (EmojiModel(), {"digest": "abc"}),
    (
        SdxlModel(),
        {
            "source": "org/other",
            "revision": "r",
            "refiner": None,
            "refiner_revision": "r",
            "vae": None,
            "vae_revision": "r",
            "variant": None,
            "precision": "fp32",
            "prediction_type": "v_prediction",
            "digest": "abc",
        },
    ),
    (SdxlModel(source="sdxl.safetensors"), {"config": "folder"}),
    (KeywordsRecipe(keywords=("ugly",)), {**DRAWN, "keywords": ["bad"], "emphasis": 1, "guidance": [3]}),
    (PLAIN, {**DRAWN, "prompts": ["a dog"], "count": 3, "guidance": 2}),
    (
        DegradeRecipe(prompts=("a cat",), degradations=("blur",)),
        {
            **DRAWN,
            "prompts": ["a dog"],
            "count": 3,
            "guidance": 2,
            "degradations": ["jpeg"],
            "severity": [0.1, 0.2],
        },
    ),
    (
        FolderRecipe(path=Path("a")),
        {
            "name": "other",
            "path": Path("b"),
            "repeats": {"*.png": 2},
            "digest": "abc",
            "count": 3,
            "captioned": True,
            "left_out": ("1 hidden",),
        },
    ),
    (
        LowRankAdapter(),
        {
            "kind": "dora",
            "rank": 5,
            "alpha": "sqrt_rank",
            "dropout": 0.1,
            "targets": ["attention", "convolutions"],
            "blocks": ["mid_block"],
            "init": "gaussian",
            "text_encoders": True,
        },
    ),
    (LowRankAdapter(text_encoders=True), {"text_encoder_targets": ["mlp"]}),
    (
        ProductAdapter(kind="lokr"),
        {
            "kind": "loha",
            "rank": 4,
            "alpha": 1,
            "factor": 4,
            "targets": ["feed_forward"],
            "blocks": ["mid_block"],
        },
    ),
    (OftAdapter(kind="oft"), {"block_size": 8, "targets": ["feed_forward"], "blocks": ["mid_block"]}),
    (TextualInversion(), {"word": "bad", "vectors": 2, "initial": "ugly"}),
    (
        GivenAdapter(kind="file", hub=HUB),
        {"name": "other", "hub": HubFile(id="other/lora"), "digest": "abc"},
    ),
    (GivenAdapter(kind="file", file=Path("a")), {"file": Path("b"), "digest": "abc"}),
    (HUB, {"id": "other/lora", "revision": "b", "weight_name": "c"}),
    (
        TrainingConfig(),
        {
            "prompt": "bad",
            "caption_dropout": 0.1,
            "steps": 5,
            "learning_rate": 0.5,
            "text_encoder_learning_rate": 0.1,
            "lora_plus_ratio": 4,
            "optimizer": OptimizerConfig(kind="prodigy"),
            "schedule": ScheduleConfig(kind="cosine"),
            "batch_size": 2,
            "gradient_accumulation": 2,
            "max_grad_norm": 0.5,
            "min_snr_gamma": 5,
            "noise_offset": 0.1,
            "timesteps": TimestepConfig(lowest=5),
            "crop": "random",
            "flip": True,
            "prior": PriorConfig(prompt="a cat", recipe=PLAIN),
            "ema": 0.9,
            "holdout": 2,
            "seed": 4,
        },
    ),
    (TrainingConfig(min_snr_gamma=5), {"min_snr_v": "diffusers"}),
    (OptimizerConfig(), {"kind": "adamw_8bit", "weight_decay": 0, "betas": [0.8, 0.9]}),
    (OptimizerConfig(kind="prodigy"), {"d_coef": 2}),
    (ScheduleConfig(), {"kind": "linear", "warmup_steps": 3}),
    (
        TimestepConfig(distribution="logit_normal"),
        {
            "distribution": "uniform",
            "lowest": 5,
            "highest": 9,
            "mean": 1,
            "deviation": 2,
        },
    ),
    (
        PriorConfig(prompt="a cat", recipe=PLAIN),
        {
            "prompt": "cats",
            "recipe": PlainRecipe(prompts=("cats",)),
            "weight": 2,
        },
    ),
]
FIELDS = [
    pytest.param(section, field, value, id=f"{type(section).__name__}.{field}")
    for section, values in SECTIONS
    for field, value in values.items()
]
BASE = TrialConfig(
    model=EmojiModel(),
    recipe=KeywordsRecipe(keywords=("x",)),
    adapter=LowRankAdapter(),
    training=TrainingConfig(),
)


def trial(section: Frozen) -> TrialConfig:
    training = BASE.trained.training
    match section:
        case LowRankAdapter() | ProductAdapter() | OftAdapter() | TextualInversion() | GivenAdapter():
            return BASE.model_copy(update={"adapter": section})
        case HubFile():
            return BASE.model_copy(update={"adapter": GivenAdapter(kind="file", hub=section)})
        case EmojiModel() | SdxlModel():
            return BASE.model_copy(update={"model": section})
        case TrainingConfig():
            return BASE.model_copy(update={"training": section})
        case OptimizerConfig() | ScheduleConfig() | TimestepConfig() | PriorConfig():
            place = type(section).__name__.removesuffix("Config").lower().replace("timestep", "timesteps")
            return BASE.model_copy(update={"training": training.model_copy(update={place: section})})
        case recipe:
            return BASE.model_copy(update={"recipe": recipe})


def test_every_field_has_another_value_to_try() -> None:
    tried: dict[type[Frozen], set[str]] = {}
    for section, values in SECTIONS:
        tried.setdefault(type(section), set()).update(values)
    for kind, fields in tried.items():
        one_kind = "kind" in kind.model_fields and len(get_args(kind.model_fields["kind"].annotation)) == 1
        assert fields == set(kind.model_fields) - ({"kind"} if one_kind else set()), kind


@pytest.mark.parametrize(("section", "field", "value"), FIELDS)
def test_a_field_changes_the_trial_unless_it_is_marked_how(section: Frozen, field: str, value: Any) -> None:
    changed = type(section).model_validate({**dict(section), field: value})
    assert changed != section
    same = fingerprint("trial", config=trial(section)) == fingerprint("trial", config=trial(changed))
    assert same == (NOT_HASHED in type(section).model_fields[field].metadata)


def test_local_model_is_its_contents_not_its_path() -> None:
    here = SdxlModel(source="/here/sdxl", refiner=None, vae="org/vae", digest="abc")
    there = here.model_copy(update={"source": "/there/sdxl"})
    assert identity(here) == identity(there)
    assert identity(here) != identity(there.model_copy(update={"digest": "def"}))
    assert identity(here) != identity(here.model_copy(update={"vae": "org/other"}))
    assert identity(here) != identity(here.model_copy(update={"refiner": "/here/refiner", "digest": "abd"}))


def test_numbers_that_are_equal_are_the_same() -> None:
    assert fingerprint("x", guidance=8) == fingerprint("x", guidance=8.0)
    assert fingerprint("x", guidance=8.5) != fingerprint("x", guidance=8)


def test_kind_and_order_of_a_list_matter_but_order_of_keys_does_not() -> None:
    assert fingerprint("a", x=1) != fingerprint("b", x=1)
    assert fingerprint("a", x=[1, 2]) != fingerprint("a", x=[2, 1])
    assert fingerprint("a", x={"k": 1, "l": 2}) == fingerprint("a", x={"l": 2, "k": 1})


@pytest.mark.parametrize("value", [Path("a"), {1: 2}, {1, 2}, object(), b"x"])
def test_anything_without_a_stable_form_raises(value: object) -> None:
    with pytest.raises(TypeError, match="stable identity"):
        fingerprint("x", value=value)


def test_the_same_in_another_process() -> None:
    module = "tests.config.schema.test_fingerprint"
    code = f"from {module} import BASE, fingerprint; print(fingerprint('trial', config=BASE))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[3],
        env={"PYTHONHASHSEED": "7", "PYTHONPATH": "."},
    )
    assert done.stdout.strip() == fingerprint("trial", config=BASE)
