from typing import Any

import pytest
import torch
from pydantic import ValidationError

from harness.config.schema.training import TrainingConfig
from harness.diffusion.adapters.adapter import ParameterGroup
from harness.diffusion.training.distributed import fresh_accelerators
from harness.diffusion.training.optimizer import group_rate, make_optimizer, schedule_factor, set_rates
from harness.errors import TrainingError


def groups() -> list[ParameterGroup]:
    def group(part: Any, side: Any) -> ParameterGroup:
        return ParameterGroup(part=part, side=side, parameters=[torch.nn.Parameter(torch.ones(2))])

    return [group(part, side) for part in ("unet", "text_encoders") for side in ("down", "up")]


def rates(config: TrainingConfig, *, step: int = 1) -> list[float]:
    made = groups()
    with fresh_accelerators(torch.device("cpu"), precision="fp32", count=1) as (accelerator,):
        optimizer = make_optimizer(made, config, accelerator)
        set_rates(optimizer, made, config, step=step)
        return [float(group["lr"]) for group in optimizer.param_groups]


def test_each_group_has_its_own_rate() -> None:
    assert rates(TrainingConfig(learning_rate=1e-3)) == [1e-3] * 4
    assert rates(TrainingConfig(learning_rate=1e-3, text_encoder_learning_rate=1e-5)) == [
        1e-3,
        1e-3,
        1e-5,
        1e-5,
    ]
    plus = TrainingConfig(learning_rate=1e-3, lora_plus_ratio=16)
    assert rates(plus) == pytest.approx([1e-3, 16e-3, 1e-3, 16e-3])
    assert [group_rate(group, plus) for group in groups()] == rates(plus)


def test_the_schedule_scales_every_rate() -> None:
    config = TrainingConfig(learning_rate=1e-3, lora_plus_ratio=2, schedule={"warmup_steps": 3})
    assert rates(config, step=2) == pytest.approx([5e-4, 1e-3, 5e-4, 1e-3])


@pytest.mark.parametrize(
    ("warmup", "factors"), [(0, [1, 1, 1, 1]), (1, [1 / 2, 1, 1, 1]), (3, [1 / 4, 2 / 4, 3 / 4, 1])]
)
def test_a_constant_rate_rises_linearly_and_stays(warmup: int, factors: list[float]) -> None:
    config = TrainingConfig(schedule={"warmup_steps": warmup})
    assert [schedule_factor(config, step) for step in (1, 2, 3, 4)] == pytest.approx(factors)
    assert schedule_factor(config, 10_000) == 1


@pytest.mark.parametrize(
    ("kind", "factors"),
    [("linear", [1, 3 / 4, 1 / 2, 1 / 4, 0]), ("cosine", [1, 0.853553, 1 / 2, 0.146447, 0])],
)
def test_a_falling_rate_is_full_after_the_warmup_and_0_after_the_last_step(
    kind: str, factors: list[float]
) -> None:
    config = TrainingConfig(steps=6, schedule={"kind": kind, "warmup_steps": 2})
    falling = [schedule_factor(config, step) for step in (3, 4, 5, 6, 7)]
    assert falling == pytest.approx(factors, abs=1e-6)
    assert [schedule_factor(config, step) for step in (1, 2)] == pytest.approx([1 / 3, 2 / 3])


@pytest.mark.parametrize("kind", ["constant", "linear", "cosine"])
def test_a_warmup_longer_than_the_run_only_rises(kind: str) -> None:
    config = TrainingConfig(steps=4, schedule={"kind": kind, "warmup_steps": 9})
    assert [schedule_factor(config, step) for step in (1, 4)] == pytest.approx([0.1, 0.4])


@pytest.mark.parametrize(
    ("kind", "module", "extra"),
    [("prodigy", "prodigyopt", "prodigy"), ("adamw_8bit", "bitsandbytes.optim", "8bit")],
)
def test_a_missing_package_names_the_extra(
    kind: str, module: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(TrainingError, match=rf"lora-sweep-harness\[{extra}\]") as caught:
        rates(TrainingConfig(optimizer={"kind": kind}))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("change", [{"lora_plus_ratio": 4}, {"text_encoder_learning_rate": 0.5}])
def test_prodigy_has_one_rate(change: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match="prodigy has one rate"):
        TrainingConfig(optimizer={"kind": "prodigy"}, learning_rate=1, **change)


def test_prodigy_takes_its_settings(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("prodigyopt")
    optimizer = {"kind": "prodigy", "d_coef": 2, "weight_decay": 0.1, "betas": (0.8, 0.99)}
    config = TrainingConfig(learning_rate=1, optimizer=optimizer, schedule={"warmup_steps": 2})
    with fresh_accelerators(torch.device("cpu"), precision="fp32", count=1) as (accelerator,):
        (group, *_) = make_optimizer(groups(), config, accelerator).param_groups
    expected = {
        "d_coef": 2,
        "weight_decay": 0.1,
        "betas": (0.8, 0.99),
        "safeguard_warmup": True,
        "decouple": True,
    }
    assert {name: group[name] for name in expected} == expected
    assert capsys.readouterr().out == ""


def test_accelerates_shared_state_is_put_back_after_an_error() -> None:
    from accelerate.state import AcceleratorState

    before = dict(AcceleratorState._shared_state)
    with (
        pytest.raises(KeyboardInterrupt),
        fresh_accelerators(torch.device("cpu"), precision="bf16", count=1),
    ):
        assert AcceleratorState._shared_state != before
        raise KeyboardInterrupt
    assert dict(AcceleratorState._shared_state) == before
