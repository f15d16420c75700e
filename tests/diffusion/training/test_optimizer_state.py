from collections.abc import Iterator
from typing import Any

import pytest
import torch

from harness.config.schema.training import TrainingConfig
from harness.diffusion.adapters.adapter import ParameterGroup
from harness.diffusion.models.attach import LoneMember
from harness.diffusion.training.distributed import fresh_accelerators
from harness.diffusion.training.optimizer import load_optimizer_tensors, make_optimizer, optimizer_tensors
from harness.errors import TrainingError

PACKAGES = {"prodigy": "prodigyopt", "adamw_8bit": "bitsandbytes"}


@pytest.fixture(params=[False, True], ids=["unscaled", "scaled"])
def accelerator(request: pytest.FixtureRequest) -> Iterator[Any]:
    with fresh_accelerators(torch.device("cpu"), precision="fp32", count=1) as (made,):
        if request.param:  # what accelerate does for fp16 on an accelerator
            made.scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=3)
        yield made


@pytest.fixture(params=["adamw", "prodigy", "adamw_8bit"])
def config(request: pytest.FixtureRequest) -> TrainingConfig:
    if request.param in PACKAGES:
        pytest.importorskip(PACKAGES[request.param])
    rate = 1.0 if request.param == "prodigy" else 1e-2
    return TrainingConfig(learning_rate=rate, optimizer={"kind": request.param})


SPEC = TrainingConfig(learning_rate=1e-2)


def parameters() -> list[torch.nn.Parameter]:
    """One of them large enough that bitsandbytes keeps its moments in 8 bits."""
    return [torch.nn.Parameter(torch.linspace(-1, 1, 64 * rows).view(rows, 64)) for rows in (2, 80)]


def member_of(weights: list[torch.nn.Parameter]) -> LoneMember:
    return LoneMember("text_encoders", {str(place): weight for place, weight in enumerate(weights)}, {})


def optimizer_of(weights: list[torch.nn.Parameter], config: TrainingConfig, accelerator: Any) -> Any:
    groups = [ParameterGroup(part="unet", side="down", parameters=[weight]) for weight in weights]
    return make_optimizer(groups, config, accelerator)


def take_steps(weights: list[torch.nn.Parameter], optimizer: Any, accelerator: Any, *, steps: int) -> None:
    for _ in range(steps):
        loss = sum(((weight - 0.3) ** 2).sum() for weight in weights)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()


def test_a_restored_optimizer_goes_on_bit_for_bit(accelerator: Any, config: TrainingConfig) -> None:
    whole = parameters()
    optimizer = optimizer_of(whole, config, accelerator)
    take_steps(whole, optimizer, accelerator, steps=4)
    tensors = optimizer_tensors(optimizer, accelerator, member_of(whole))
    middle = [weight.detach().clone() for weight in whole]
    take_steps(whole, optimizer, accelerator, steps=4)

    resumed = [torch.nn.Parameter(weight.clone()) for weight in middle]
    fresh = optimizer_of(resumed, config, accelerator)
    load_optimizer_tensors(fresh, accelerator, tensors, member_of(resumed))
    again = optimizer_tensors(fresh, accelerator, member_of(resumed))
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[name], tensors[name]) for name in tensors)
    take_steps(resumed, fresh, accelerator, steps=4)
    assert all(torch.equal(one, other) for one, other in zip(resumed, whole, strict=True))
    assert not torch.equal(whole[1].detach(), middle[1])


def test_the_state_is_a_copy(accelerator: Any, config: TrainingConfig) -> None:
    weights = parameters()
    optimizer = optimizer_of(weights, config, accelerator)
    take_steps(weights, optimizer, accelerator, steps=1)
    tensors = optimizer_tensors(optimizer, accelerator, member_of(weights))
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    take_steps(weights, optimizer, accelerator, steps=1)
    assert all(torch.equal(tensors[name], before[name]) for name in tensors)


def test_8_bit_moments_stay_8_bit() -> None:
    pytest.importorskip("bitsandbytes")
    with fresh_accelerators(torch.device("cpu"), precision="fp32", count=1) as (accelerator,):
        weights = parameters()
        optimizer = optimizer_of(weights, TrainingConfig(optimizer={"kind": "adamw_8bit"}), accelerator)
        take_steps(weights, optimizer, accelerator, steps=1)
        assert (
            optimizer_tensors(optimizer, accelerator, member_of(weights))["0001.state1"].dtype == torch.uint8
        )


def test_a_run_whose_steps_were_all_skipped_can_go_on() -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    with fresh_accelerators(torch.device("cpu"), precision="fp32", count=1) as (accelerator,):
        accelerator.scaler = scaler
        weights = parameters()
        optimizer = optimizer_of(weights, SPEC, accelerator)
        tensors = optimizer_tensors(optimizer, accelerator, member_of(weights))
        assert {name: float(tensor) for name, tensor in tensors.items()} == {
            "scaler.scale": 8.0,
            "scaler.growth_tracker": 0.0,
        }
        load_optimizer_tensors(optimizer, accelerator, tensors, member_of(weights))


def test_moments_are_missed_where_no_step_can_be_skipped(config: TrainingConfig) -> None:
    with fresh_accelerators(torch.device("cpu"), precision="fp32", count=1) as (accelerator,):
        weights = parameters()
        optimizer = optimizer_of(weights, config, accelerator)
        with pytest.raises(TrainingError, match=r"optimizer is not of this run: .* the run has"):
            load_optimizer_tensors(optimizer, accelerator, {}, member_of(weights))
