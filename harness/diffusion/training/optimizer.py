"""The optimizers, their learning rates at each step, and their state as named tensors.

A number that Python counts in (a step, Prodigy's estimate) is stored as an int64 or float64 tensor without
dimensions; no optimizer here keeps such tensors of its own.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from harness.config.schema.training import TrainingConfig
from harness.errors import TrainingError

if TYPE_CHECKING:
    from harness.diffusion.adapters.adapter import ParameterGroup
    from harness.diffusion.models.model import Member


def make_optimizer(
    groups: Sequence["ParameterGroup"], training: TrainingConfig, accelerator: Accelerator
) -> AcceleratedOptimizer:
    """The optimizer of `training.optimizer` over the groups, each at its own rate.

    Raises TrainingError where its package is not installed.
    """
    own = [{"params": list(group.parameters), "lr": group_rate(group, training)} for group in groups]
    return accelerator.prepare_optimizer(_optimizer(own, training), device_placement=False)


def _optimizer(groups: list[dict[str, Any]], training: TrainingConfig) -> Optimizer:
    config = training.optimizer
    shared: dict[str, Any] = {"betas": config.betas, "weight_decay": config.weight_decay}
    match config.kind:
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


def _prodigy(groups: list[dict[str, Any]], shared: dict[str, Any], training: TrainingConfig) -> Optimizer:
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


def group_rate(group: "ParameterGroup", training: TrainingConfig) -> float:
    """A group's full rate: its part's own, times LoRA+'s ratio for B (Hayou et al. 2024)."""
    rate = training.learning_rate
    if group.part == "text_encoders" and training.text_encoder_learning_rate is not None:
        rate = training.text_encoder_learning_rate
    return rate * (training.lora_plus_ratio if group.side == "up" else 1.0)


def schedule_factor(training: TrainingConfig, step: int) -> float:
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
    optimizer: AcceleratedOptimizer,
    groups: Sequence["ParameterGroup"],
    training: TrainingConfig,
    *,
    step: int,
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


ADAMW = ("step", "exp_avg", "exp_avg_sq")
PRODIGY = ("d", "d_max", "d_numerator", "d_denom", "d_hat", "k")  # of a group, while it goes
SCALER = {"scaler.scale": "scale", "scaler.growth_tracker": "_growth_tracker"}  # under fp16 alone


def optimizer_tensors(
    optimizer: AcceleratedOptimizer, accelerator: Accelerator, member: "Member"
) -> dict[str, Tensor]:
    """Copies of all state on the CPU: `0000.exp_avg`, … in the parameters' order, `group.0.d`, fp16's.

    What lies beside a parameter number by number is without the padding of the member's pack.
    """
    # Not its state_dict: bitsandbytes packs 8-bit moments into one more layer of dictionaries there.
    owners = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    tensors = {
        f"{index:04d}.{name}": _trimmed(member, index, owner, _tensor(value))
        for index, owner in enumerate(owners)
        if owner in optimizer.state
        for name, value in optimizer.state[owner].items()
    }
    for index, group in enumerate(optimizer.param_groups):
        tensors |= {f"group.{index}.{name}": _tensor(group[name]) for name in PRODIGY if name in group}
    if accelerator.scaler is not None:
        scale = accelerator.scaler.state_dict()
        tensors |= {key: torch.tensor(float(scale[name])) for key, name in SCALER.items()}
    return tensors


def load_optimizer_tensors(
    optimizer: AcceleratedOptimizer,
    accelerator: Accelerator,
    tensors: Mapping[str, Tensor],
    member: "Member",
) -> None:
    """Put back what `optimizer_tensors` gave. Raises TrainingError where it belongs to other parameters."""
    parameters = parameters_of(member.groups())
    scaler = accelerator.scaler
    # While fp16's loss scale is still too high, steps are skipped, and there are no moments before the first.
    stepped = scaler is None or any(name[:4].isdigit() for name in tensors)
    adamw = isinstance(optimizer.optimizer, torch.optim.AdamW)
    expected = _adamw_shapes(member) if adamw and stepped else {}
    expected |= dict.fromkeys(SCALER, ()) if scaler is not None else {}
    if adamw:
        require_same_shapes("optimizer", tensors, expected)
    state: dict[int, dict[str, Any]] = {}
    groups = optimizer.state_dict()["param_groups"]
    for key, tensor in tensors.items():
        owner, _, name = key.partition(".")
        if owner == "group":
            index, _, name = name.partition(".")
            groups[int(index)][name] = _value(tensor)
        elif owner != "scaler":
            state.setdefault(int(owner), {})[name] = _value(_padded(member, int(owner), tensor))
    if stepped and state.keys() != set(range(len(parameters))):
        raise _of_another_run("optimizer", f"it has moments for {len(state)} parameters", len(parameters))
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    if scaler is not None:
        saved = {name: tensors[key].item() for key, name in SCALER.items()}
        saved["_growth_tracker"] = int(saved["_growth_tracker"])
        scaler.load_state_dict(scaler.state_dict() | saved)


def require_same_shapes(
    what: str, found: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]]
) -> None:
    """Raises TrainingError with the first tensor that is missing, unknown or of another shape."""
    shapes = {name: tuple(tensor.shape) for name, tensor in found.items()}
    for name in sorted(shapes.keys() | expected.keys()):
        if name not in shapes or name not in expected or shapes[name] != expected[name]:
            has = f"{name} is {shapes.get(name, 'missing')}"
            raise _of_another_run(what, has, expected.get(name, "no such tensor"))


def _adamw_shapes(member: "Member") -> dict[str, tuple[int, ...]]:
    return {
        f"{owner:04d}.{name}": () if name == "step" else tuple(member.trimmed(owner, parameter).shape)
        for owner, parameter in enumerate(parameters_of(member.groups()))
        for name in ADAMW
    }


def _trimmed(member: "Member", number: int, parameter: Parameter, value: Tensor) -> Tensor:
    return member.trimmed(number, value) if value.shape == parameter.shape else value


def _padded(member: "Member", number: int, value: Tensor) -> Tensor:
    parameter = parameters_of(member.groups())[number]
    own = member.trimmed(number, parameter).shape
    return member.padded(number, value) if value.shape == own else value


def _of_another_run(what: str, has: str, expected: object) -> TrainingError:
    return TrainingError(
        f"the checkpoint's {what} is not of this run: {has}, the run has {expected}; "
        "delete the checkpoint to train again"
    )


def _tensor(value: Tensor | float) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    return torch.tensor(value, dtype=torch.int64 if isinstance(value, int) else torch.float64)


def _value(tensor: Tensor) -> Tensor | float:
    if tensor.ndim == 0 and tensor.dtype in (torch.int64, torch.float64):
        return tensor.item()
    return tensor.clone()
