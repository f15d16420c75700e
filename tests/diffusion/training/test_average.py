import pytest
import torch

from harness.diffusion.training.run_state import MovingAverage


class Holder:
    """A Trainable of one parameter, as far as an average needs one."""

    def __init__(self, values: list[float]) -> None:
        self.parameter = torch.nn.Parameter(torch.tensor(values))

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {"unet.x": self.parameter.detach()}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        with torch.no_grad():
            self.parameter.copy_(state["unet.x"])


def averaged(decay: float, values: list[float], *, restored_after: int | None = None) -> list[float]:
    holder = Holder([100.0])
    average = MovingAverage([holder.parameter], decay)
    for step, value in enumerate(values, start=1):
        holder.parameter.data.fill_(value)
        average.update(step)
        if step == restored_after:
            state = average.state_dict(holder)  # type: ignore[arg-type]
            average = MovingAverage([holder.parameter], decay)
            average.load_state_dict(holder, state)  # type: ignore[arg-type]
    result: list[float] = average.state_dict(holder)["unet.x"].tolist()  # type: ignore[arg-type]
    if restored_after is None:
        assert holder.parameter.tolist() == values[-1:]  # the adapter itself is left alone
    return result


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.999])
def test_later_steps_weigh_more_and_the_start_nothing(decay: float) -> None:
    values = [3.0, -1.0, 4.0]
    weights = [decay**2, decay, 1.0]
    expected = sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)
    assert averaged(decay, values) == pytest.approx([expected], rel=1e-5)


def test_the_average_of_one_step_is_that_step() -> None:
    assert averaged(0.9999, [7.0]) == [7.0]


def test_a_restored_average_goes_on_bit_for_bit() -> None:
    values = [1.0, 5.0, 2.0, 8.0]
    assert averaged(0.9, values, restored_after=2) == averaged(0.9, values)
