"""An optimizer's state as named tensors, and back.

A number that Python counts in (a step, Prodigy's estimate) becomes an int64 or float64 tensor without
dimensions; no optimizer here keeps such tensors of its own.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor
from torch.nn import Parameter

from harness.errors import TrainingError
from harness.training.optimizer import parameters_of

if TYPE_CHECKING:
    from harness.models.model import Member

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
