"""Identity: every field either decides a result and changes the ids, or is marked HOW and changes none."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from harness.models.spec import EmojiModel, SdxlModel
from harness.recipes.spec import DegradeRecipe, FolderRecipe, KeywordsRecipe, PlainRecipe
from harness.spec.base import HOW, Frozen
from harness.spec.fingerprint import fingerprint, identity
from harness.spec.trial import LoraAdapter, TrainingSpec, TrialSpec

DRAWN = {"name": "other", "steps": 7, "refiner_start": None, "seed": 9}
SECTIONS: dict[Frozen, dict[str, Any]] = {
    EmojiModel(): {"digest": "abc"},
    SdxlModel(): {
        "source": "org/other",
        "revision": "r",
        "refiner": None,
        "refiner_revision": "r",
        "vae": None,
        "vae_revision": "r",
        "variant": None,
        "precision": "fp32",
        "digest": "abc",
    },
    KeywordsRecipe(keywords=("ugly",)): {**DRAWN, "keywords": ["bad"], "emphasis": 1, "guidance": [3]},
    PlainRecipe(prompts=("a cat",)): {**DRAWN, "prompts": ["a dog"], "count": 3, "guidance": 2},
    DegradeRecipe(prompts=("a cat",), degradations=("blur",)): {
        **DRAWN,
        "prompts": ["a dog"],
        "count": 3,
        "guidance": 2,
        "degradations": ["jpeg"],
        "severity": [0.1, 0.2],
    },
    FolderRecipe(path=Path("a")): {"name": "other", "path": Path("b"), "digest": "abc", "count": 3},
    LoraAdapter(): {"rank": 5, "alpha": "sqrt_rank"},
    TrainingSpec(): {
        "prompt": "bad",
        "steps": 5,
        "learning_rate": 0.5,
        "warmup_steps": 3,
        "batch_size": 2,
        "gradient_accumulation": 2,
        "max_grad_norm": 0.5,
        "weight_decay": 0,
        "seed": 4,
    },
}
FIELDS = [(section, field) for section in SECTIONS for field in type(section).model_fields if field != "kind"]
PLACES = {LoraAdapter: "adapter", TrainingSpec: "training", EmojiModel: "model", SdxlModel: "model"}
BASE = TrialSpec(
    model=EmojiModel(), recipe=KeywordsRecipe(keywords=("x",)), adapter=LoraAdapter(), training=TrainingSpec()
)


def trial(section: Frozen) -> TrialSpec:
    place = PLACES.get(type(section), "recipe")
    return BASE.model_copy(update={place: section})


@pytest.mark.parametrize(
    ("section", "field"), FIELDS, ids=[f"{type(section).__name__}.{field}" for section, field in FIELDS]
)
def test_a_field_changes_the_trial_unless_it_is_marked_how(section: Frozen, field: str) -> None:
    value = SECTIONS[section][field]  # a new field needs a value here
    changed = type(section).model_validate({**dict(section), field: value})
    assert changed != section
    same = fingerprint("trial", spec=trial(section)) == fingerprint("trial", spec=trial(changed))
    assert same == (HOW in type(section).model_fields[field].metadata)


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
    code = "from tests.spec.test_fingerprint import BASE, fingerprint; print(fingerprint('trial', spec=BASE))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
        env={"PYTHONHASHSEED": "7", "PYTHONPATH": "."},
    )
    assert done.stdout.strip() == fingerprint("trial", spec=BASE)
