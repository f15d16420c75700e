"""Samplers: diffusers' schedulers by name, and the rule by which a base hands over to its refiner."""

import inspect
from typing import Any, get_args

import diffusers
import torch

from harness.config.schema.evaluation import NO_HAND_OVER, Scheduler
from harness.errors import ModelError

# From the noise of a zero terminal SNR, the first step of these, of second order, loses the image or blows
# its rounding up: they keep to the levels before rescaling, the last of which has a little signal.
NO_ZERO_SNR = frozenset(
    {"HeunDiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "KDPM2DiscreteScheduler"}
)
TERMINAL_SIGNAL = 2**-24  # what diffusers' Euler makes of zero, so that σ is finite


def own_name(scheduler: Any, source: str) -> Scheduler:
    """The name of a model's own scheduler. Raises ModelError where the harness does not know it."""
    name: Any = type(scheduler).__name__
    if name not in get_args(Scheduler):
        raise ModelError(
            f"{source} has the scheduler {name}, with which an image may depend on its neighbours; "
            f"save the model with one of {', '.join(get_args(Scheduler))}"
        )
    return name


def make(own: Any, name: Scheduler | None) -> Any:
    """A fresh scheduler of this name (null: the model's own) with the model's noise levels."""
    kind = type(own) if name is None else getattr(diffusers, name)
    if kind is type(own):
        return kind.from_config(own.config)
    # What SDXL's own configuration says, and a shorter one leaves to defaults that are meant for pixels.
    said: dict[str, Any] = {"clip_sample": False, "skip_prk_steps": True}
    rescaled = getattr(own.config, "rescale_betas_zero_snr", False)
    knows = "rescale_betas_zero_snr" in inspect.signature(kind).parameters
    if rescaled and not knows and kind.__name__ not in NO_ZERO_SNR:
        said["trained_betas"] = _betas(own.alphas_cumprod)
    return kind.from_config(own.config, **said)


def _betas(alphas_cumprod_T: torch.Tensor) -> list[float]:
    """β of a schedule of zero terminal SNR (Lin et al. 2023), for schedulers that cannot rescale."""
    alphas_T = alphas_cumprod_T.double().clamp(min=TERMINAL_SIGNAL)
    before_T = torch.cat([torch.ones(1, dtype=torch.float64), alphas_T[:-1]])
    return [float(beta) for beta in 1 - alphas_T / before_T]


def check_hand_over(own: Any, name: Scheduler | None, *, steps: int, start: float) -> None:
    """Raise ModelError where base and refiner cannot share the schedule: steps that one would not take."""
    scheduler = make(own, name)
    named = type(scheduler).__name__
    if named in NO_HAND_OVER:
        allowed = ", ".join(sorted(set(get_args(Scheduler)) - NO_HAND_OVER))
        raise ModelError(
            f"{named} cannot hand over to a refiner: diffusers would start it on another noise level. "
            f"Set refiner_start: null, or scheduler to one of {allowed}"
        )
    scheduler.set_timesteps(steps)
    trained = scheduler.config.num_train_timesteps
    before = scheduler.timesteps >= round(trained - start * trained)  # as the pipelines have it
    for artifact, taken in (("base", before), ("refiner", ~before)):
        if not torch.any(taken):
            raise ModelError(
                f"steps: {steps} with refiner_start: {start:g} leaves no step to the {artifact}; "
                "take more steps, or set refiner_start: null"
            )
