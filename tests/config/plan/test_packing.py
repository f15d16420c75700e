"""Which runs go through the base together."""

from pathlib import Path
from typing import Any

import pytest

from harness.config.plan.packing import packs, trained_alone
from harness.config.plan.plan import Dataset, TrainingRun
from harness.config.schema.adapter import LowRankAdapter, OftAdapter, ProductAdapter, TextualInversion
from harness.config.schema.model import EmojiModel, SdxlModel
from harness.config.schema.recipe import FolderRecipe
from harness.config.schema.training import TrainingConfig


def run_of(
    name: str,
    *,
    rank: int = 4,
    steps: int = 100,
    adapter: Any = None,
    model: Any = None,
    **training: Any,
) -> TrainingRun:
    recipe = FolderRecipe(path=Path("images"))
    return TrainingRun(
        run_id=name,
        dataset=Dataset(dataset_id="d", model=model or EmojiModel(), recipe=recipe),
        adapter=adapter or LowRankAdapter(rank=rank),
        training=TrainingConfig(steps=steps, **training),
        checkpoints=(steps,),
        prior=None,
    )


def names(found: list[list[TrainingRun]]) -> list[list[str]]:
    return [[run.run_id for run in pack] for pack in found]


def test_ranks_are_kept_together_and_packs_are_even() -> None:
    runs = [run_of(f"{rank}-{place}", rank=rank) for place in range(3) for rank in (4, 64)]
    assert names(packs(runs, 4)) == [["64-0", "64-1", "64-2"], ["4-0", "4-1", "4-2"]]
    assert [len(pack) for pack in packs(runs, 2)] == [2, 2, 2]
    assert len(packs(runs, 16)) == 1


def test_the_longest_come_first_and_lengths_stay_together() -> None:
    runs = [run_of("short", steps=10), run_of("long", steps=1000), run_of("longer", steps=2000)]
    assert names(packs([*runs, run_of("short too", steps=10)], 2)) == [
        ["longer", "long"],
        ["short", "short too"],
    ]


def test_alone_they_stay_as_they_are() -> None:
    runs = [run_of("short", steps=10), run_of("long", steps=1000)]
    assert names(packs(runs, 1)) == [["short"], ["long"]]


@pytest.mark.parametrize(
    ("alone", "said"),
    [
        ({"adapter": TextualInversion(), "prompt": "wrong"}, "textual inversion"),
        ({"optimizer": {"kind": "adamw_8bit"}}, "adamw_8bit"),
        ({"adapter": ProductAdapter(kind="lokr")}, "lokr is trained by PEFT's own layers"),
        ({"adapter": OftAdapter(kind="oft")}, "oft is trained by PEFT's own layers"),
    ],
)
def test_what_cannot_be_packed_is_alone_and_says_why(alone: dict[str, Any], said: str) -> None:
    runs = [run_of("alone", **alone), run_of("one"), run_of("other")]
    assert said in str(trained_alone(runs[0])) and trained_alone(runs[1]) is None
    assert sorted(names(packs(runs, 8))) == [["alone"], ["one", "other"]]


def test_a_pack_has_one_base() -> None:
    other = SdxlModel(source="random", refiner=None, vae=None)
    runs = [run_of("emoji"), run_of("sdxl", model=other), run_of("emoji too")]
    assert sorted(names(packs(runs, 8))) == [["emoji", "emoji too"], ["sdxl"]]
