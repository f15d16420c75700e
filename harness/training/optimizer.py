"""AdamW, its learning rate, and its state as named tensors."""

from collections.abc import Mapping, Sequence

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor
from torch.nn import Parameter

from harness.errors import TrainingError
from harness.spec.trial import TrainingSpec

MOMENTS = ("step", "exp_avg", "exp_avg_sq")
SCALER = {"scaler.scale": "scale", "scaler.growth_tracker": "_growth_tracker"}  # under fp16 alone


def make_optimizer(
    parameters: Sequence[Parameter], training: TrainingSpec, accelerator: Accelerator
) -> AcceleratedOptimizer:
    """AdamW (Loshchilov & Hutter 2019) in one fused kernel where the device has it."""
    adamw = torch.optim.AdamW(
        parameters,
        lr=training.learning_rate,
        weight_decay=training.weight_decay,
        fused=parameters[0].device.type in ("cpu", "cuda"),
    )
    return accelerator.prepare_optimizer(adamw, device_placement=False)


def learning_rate(training: TrainingSpec, step: int) -> float:
    """The rate of step 1, 2, …: rises linearly, full from step `warmup_steps` + 1 on, then constant.

    Constant, so that it does not depend on how many steps are to come.
    """
    return training.learning_rate * min(1.0, step / (training.warmup_steps + 1))


def optimizer_tensors(optimizer: AcceleratedOptimizer, accelerator: Accelerator) -> dict[str, Tensor]:
    """Copies of all state on the CPU: `0000.exp_avg`, … in order of the parameters, and fp16's loss scale."""
    tensors = {
        f"{index:04d}.{name}": moments[name].to("cpu", torch.float32, copy=True)
        for index, moments in optimizer.state_dict()["state"].items()
        for name in MOMENTS
    }
    if accelerator.scaler is not None:
        scale = accelerator.scaler.state_dict()
        tensors |= {key: torch.tensor(float(scale[name])) for key, name in SCALER.items()}
    return tensors


def load_optimizer_tensors(
    optimizer: AcceleratedOptimizer,
    accelerator: Accelerator,
    tensors: Mapping[str, Tensor],
    *,
    parameters: Sequence[Parameter],
) -> None:
    """Put back what `optimizer_tensors` gave. Raises TrainingError where it belongs to other parameters."""
    scaler = accelerator.scaler
    # While fp16's loss scale is still too high, steps are skipped, and AdamW has no moments before its first.
    stepped = scaler is None or bool(tensors.keys() - SCALER.keys())
    owners = range(len(parameters)) if stepped else ()
    expected = {
        f"{owner:04d}.{name}": () if name == "step" else tuple(parameters[owner].shape)
        for owner in owners
        for name in MOMENTS
    }
    expected |= dict.fromkeys(SCALER, ()) if scaler is not None else {}
    require_same_shapes("optimizer", tensors, expected)
    state = {owner: {name: tensors[f"{owner:04d}.{name}"] for name in MOMENTS} for owner in owners}
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
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
            raise TrainingError(
                f"the checkpoint's {what} is not of this run: {name} is {shapes.get(name, 'missing')}, "
                f"the run has {expected.get(name, 'no such tensor')}; delete the checkpoint to train again"
            )
