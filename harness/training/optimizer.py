"""The optimizers, and each parameter group's learning rate at each step."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch.nn import Parameter
from torch.optim import Optimizer

from harness.errors import TrainingError
from harness.spec.training import TrainingSpec

if TYPE_CHECKING:
    from harness.models.model import ParameterGroup


def make_optimizer(
    groups: Sequence["ParameterGroup"], training: TrainingSpec, accelerator: Accelerator
) -> AcceleratedOptimizer:
    """The optimizer of `training.optimizer` over the groups, each at its own rate.

    Raises TrainingError where its package is not installed.
    """
    own = [{"params": list(group.parameters), "lr": group_rate(group, training)} for group in groups]
    return accelerator.prepare_optimizer(_optimizer(own, training), device_placement=False)


def _optimizer(groups: list[dict[str, Any]], training: TrainingSpec) -> Optimizer:
    spec = training.optimizer
    shared: dict[str, Any] = {"betas": spec.betas, "weight_decay": spec.weight_decay}
    match spec.kind:
        case "adamw":  # one fused kernel where the device has it
            device: torch.device = groups[0]["params"][0].device
            return torch.optim.AdamW(groups, **shared, fused=device.type in ("cpu", "cuda"))
        case "adamw_8bit":
            return _adamw_8bit(groups, shared)
        case "prodigy":
            assert len({group["lr"] for group in groups}) == 1, "the specification sees to it"
            return _prodigy(groups, shared, training)


def _adamw_8bit(groups: list[dict[str, Any]], shared: dict[str, Any]) -> Optimizer:
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise missing_extra("adamw_8bit", "8bit", error) from error
    return AdamW8bit(groups, **shared)


def _prodigy(groups: list[dict[str, Any]], shared: dict[str, Any], training: TrainingSpec) -> Optimizer:
    try:
        from prodigyopt import Prodigy
    except ImportError as error:
        raise missing_extra("prodigy", "prodigy", error) from error
    optimizer = Prodigy(
        groups,
        betas=shared["betas"],
        d_coef=1.0 if training.optimizer.d_coef is None else training.optimizer.d_coef,
        # Its estimate divides by the rate, and would overshoot while the rate is still rising.
        safeguard_warmup=training.schedule.warmup_steps > 0,
    )
    for group in optimizer.param_groups:
        group["weight_decay"] = shared["weight_decay"]  # given here, because its constructor prints about it
    return optimizer


def missing_extra(kind: str, extra: str, error: ImportError) -> TrainingError:
    """The error that says what to install."""
    return TrainingError(
        f"training.optimizer.kind: {kind} needs a package that is not installed ({error.name}): "
        f"pip install 'lora-sweep-harness[{extra}]'"
    )


def group_rate(group: "ParameterGroup", training: TrainingSpec) -> float:
    """A group's full rate: its part's own, times LoRA+'s ratio for B (Hayou et al. 2024)."""
    rate = training.learning_rate
    if group.part == "text_encoders" and training.text_encoder_learning_rate is not None:
        rate = training.text_encoder_learning_rate
    return rate * (training.lora_plus_ratio if group.side == "up" else 1.0)


def schedule_factor(training: TrainingSpec, step: int) -> float:
    """What every rate is multiplied by at step 1, 2, …: full at step `warmup_steps` + 1, 0 after the last."""
    warmup = training.schedule.warmup_steps
    if step <= warmup:
        return step / (warmup + 1)
    passed = (step - warmup - 1) / max(1, training.steps - warmup)
    match training.schedule.kind:
        case "constant":  # does not depend on how many steps are to come
            return 1.0
        case "linear":
            return 1 - passed
        case "cosine":
            return (1 + math.cos(math.pi * passed)) / 2


def set_rates(
    optimizer: AcceleratedOptimizer, groups: Sequence["ParameterGroup"], training: TrainingSpec, *, step: int
) -> None:
    """Give every group its rate for this step."""
    for settings, group in zip(optimizer.param_groups, groups, strict=True):
        settings["lr"] = group_rate(group, training) * schedule_factor(training, step)


@torch.no_grad()
def clip_gradients(parameters: Sequence[Parameter], limit: float) -> None:
    """Scale the gradients so that the norm of all of them is at most `limit` (Pascanu et al. 2013).

    The norm is summed up in double precision, so that the padding of a pack does not round it otherwise.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norms = [torch.linalg.vector_norm(gradient, dtype=torch.float64) for gradient in gradients]
    norm = torch.linalg.vector_norm(torch.stack(norms))
    factor = (limit / (norm + 1e-6)).clamp(max=1.0).float()
    torch._foreach_mul_(gradients, factor)


def parameters_of(groups: Sequence["ParameterGroup"]) -> list[Parameter]:
    """All parameters in the groups' order."""
    return [parameter for group in groups for parameter in group.parameters]
