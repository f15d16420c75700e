from collections.abc import Iterator
from typing import Any

import pytest
import torch

from harness.errors import TrainingError
from harness.spec.trial import TrainingSpec
from harness.training.accelerator import fresh_accelerator
from harness.training.optimizer import (
    learning_rate,
    load_optimizer_tensors,
    make_optimizer,
    optimizer_tensors,
)

SPEC = TrainingSpec(learning_rate=1e-2)


@pytest.fixture(params=[False, True], ids=["unscaled", "scaled"])
def accelerator(request: pytest.FixtureRequest) -> Iterator[Any]:
    with fresh_accelerator(torch.device("cpu"), precision="fp32", gradient_accumulation=1) as made:
        if request.param:  # what accelerate does for fp16 on an accelerator
            made.scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=3)
        yield made


def parameters() -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.full((rows, 2), 0.5)) for rows in (2, 3)]


def take_steps(weights: list[torch.nn.Parameter], optimizer: Any, accelerator: Any, *, steps: int) -> None:
    for _ in range(steps):
        loss = sum(((weight - 0.3) ** 2).sum() for weight in weights)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()


def test_a_restored_optimizer_goes_on_bit_for_bit(accelerator: Any) -> None:
    whole = parameters()
    optimizer = make_optimizer(whole, SPEC, accelerator)
    take_steps(whole, optimizer, accelerator, steps=4)
    tensors = optimizer_tensors(optimizer, accelerator)
    middle = [weight.detach().clone() for weight in whole]
    take_steps(whole, optimizer, accelerator, steps=4)

    resumed = [torch.nn.Parameter(weight) for weight in middle]
    fresh = make_optimizer(resumed, SPEC, accelerator)
    load_optimizer_tensors(fresh, accelerator, tensors, parameters=resumed)
    assert {name: tensor.tolist() for name, tensor in optimizer_tensors(fresh, accelerator).items()} == {
        name: tensor.tolist() for name, tensor in tensors.items()
    }
    take_steps(resumed, fresh, accelerator, steps=4)
    assert all(torch.equal(one, other) for one, other in zip(resumed, whole, strict=True))
    assert optimizer_tensors(fresh, accelerator).keys() == optimizer_tensors(optimizer, accelerator).keys()


def test_the_state_is_a_copy(accelerator: Any) -> None:
    weights = parameters()
    optimizer = make_optimizer(weights, SPEC, accelerator)
    take_steps(weights, optimizer, accelerator, steps=1)
    tensors = optimizer_tensors(optimizer, accelerator)
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    take_steps(weights, optimizer, accelerator, steps=1)
    assert all(torch.equal(tensors[name], before[name]) for name in tensors)


def test_a_run_whose_steps_were_all_skipped_can_go_on() -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    with fresh_accelerator(torch.device("cpu"), precision="fp32", gradient_accumulation=1) as accelerator:
        accelerator.scaler = scaler
        weights = parameters()
        optimizer = make_optimizer(weights, SPEC, accelerator)
        tensors = optimizer_tensors(optimizer, accelerator)
        assert {name: float(tensor) for name, tensor in tensors.items()} == {
            "scaler.scale": 8.0,
            "scaler.growth_tracker": 0.0,
        }
        load_optimizer_tensors(optimizer, accelerator, tensors, parameters=weights)


def test_moments_are_missed_where_no_step_can_be_skipped() -> None:
    with fresh_accelerator(torch.device("cpu"), precision="fp32", gradient_accumulation=1) as accelerator:
        weights = parameters()
        optimizer = make_optimizer(weights, SPEC, accelerator)
        with pytest.raises(TrainingError, match=r"0000\.exp_avg is missing, the run has \(2, 2\)"):
            load_optimizer_tensors(optimizer, accelerator, {}, parameters=weights)


@pytest.mark.parametrize(
    ("warmup", "rates"), [(0, [1, 1, 1, 1]), (1, [1 / 2, 1, 1, 1]), (3, [1 / 4, 2 / 4, 3 / 4, 1])]
)
def test_the_rate_rises_linearly_and_stays(warmup: int, rates: list[float]) -> None:
    spec = TrainingSpec(learning_rate=2e-4, warmup_steps=warmup)
    assert [learning_rate(spec, step) for step in (1, 2, 3, 4)] == pytest.approx(
        [2e-4 * rate for rate in rates]
    )
    assert learning_rate(spec, 10_000) == 2e-4


def test_accelerates_shared_state_is_put_back_after_an_error() -> None:
    from accelerate.state import AcceleratorState

    before = dict(AcceleratorState._shared_state)
    with (
        pytest.raises(KeyboardInterrupt),
        fresh_accelerator(torch.device("cpu"), precision="bf16", gradient_accumulation=2),
    ):
        assert AcceleratorState._shared_state != before
        raise KeyboardInterrupt
    assert dict(AcceleratorState._shared_state) == before
