from typing import Any

import pytest

from harness.config.schema.adapter import LowRankAdapter
from harness.diffusion.models.model import Model
from harness.diffusion.training.autotune import out_of_memory
from tests.diffusion.training.runs import make_run


def test_out_of_memory_says_what_to_change(tiny_model: Model) -> None:
    run = make_run(
        tiny_model,
        batch_size=4,
        gradient_accumulation=2,
        adapter=LowRankAdapter(rank=64, kind="dora", targets=("attention", "convolutions")),
    )
    message = out_of_memory(run, checkpointing=False)
    named = [
        "compute.gradient_checkpointing: true",
        "training.batch_size: 1 with training.gradient_accumulation: 8",
        "model.precision: bf16",
        "adapter.kind: lora",
        "adapter.targets: [attention]",
        "adapter.rank than 64",
        "adamw_8bit",
    ]
    places = [message.index(name) for name in named]
    assert places == sorted(places)
    assert "\n" not in message


@pytest.mark.parametrize(
    ("asked", "checkpointing", "silent"),
    [
        ({"batch_size": 4}, True, "gradient_checkpointing"),
        ({"batch_size": 1}, False, "batch_size"),
        ({"rank": 1}, False, "adapter.rank"),
        ({"adapter": LowRankAdapter(kind="rslora")}, False, "adapter.kind"),
        ({"adapter": LowRankAdapter(targets=("attention",))}, False, "adapter.targets"),
        ({"optimizer": {"kind": "adamw_8bit"}}, False, "optimizer"),
    ],
)
def test_what_is_done_already_is_not_advised(
    tiny_model: Model, asked: dict[str, Any], checkpointing: bool, silent: str
) -> None:
    assert silent not in out_of_memory(make_run(tiny_model, **asked), checkpointing=checkpointing)
