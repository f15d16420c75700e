"""What PEFT starts: from the seed alone, in fp32, whatever the layers are in; nothing else is touched."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from pydantic import ValidationError

from harness.config.schema.adapter import LowRankAdapter
from harness.diffusion.adapters.init import LAYER, configuration, fresh_state
from tests.diffusion.adapters.adapters import base_of

KINDS: dict[str, dict[str, Any]] = {
    "lora": {"rank": 3, "alpha": 5.0},
    "root": {"rank": 3, "alpha": "sqrt_rank", "dropout": 0.25},
    "rslora": {"kind": "rslora", "rank": 6, "alpha": 2.0},
    "dora": {"kind": "dora", "rank": 3},
}


def layers(dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(1)
        made = {"linear": torch.nn.Linear(6, 10), "conv": torch.nn.Conv2d(4, 8, 3, stride=2, padding=1)}
    return {name: module.to(dtype) for name, module in made.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_the_specification_is_pefts_configuration(kind: str):
    adapter = LowRankAdapter(**KINDS[kind])
    config = configuration(adapter, [LAYER])
    assert (config.r, config.lora_dropout) == (adapter.rank, adapter.dropout)
    assert (config.use_rslora, config.use_dora) == (kind == "rslora", kind == "dora")
    model = inject_adapter_in_model(config, torch.nn.ModuleDict({LAYER: torch.nn.Linear(6, 10)}))
    layer = model.get_submodule(LAYER)
    assert isinstance(layer, LoraLayer)
    assert layer.scaling["default"] == pytest.approx(adapter.scale)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_it_starts_in_fp32_and_changes_nothing_yet(kind: str, dtype: torch.dtype):
    adapter = LowRankAdapter(**KINDS[kind])
    modules = layers(dtype)
    before = {name: module.weight.clone() for name, module in modules.items()}
    state = fresh_state(modules, adapter, 7)
    rank = adapter.rank
    shapes = {"linear": ((rank, 6), (10, rank)), "conv": ((rank, 4, 3, 3), (8, rank, 1, 1))}
    for name, module in modules.items():
        down, up = state[f"{name}.lora_A.weight"], state[f"{name}.lora_B.weight"]
        assert (tuple(down.shape), tuple(up.shape)) == shapes[name]
        assert down.abs().sum() > 0 and not up.any()
        assert torch.equal(down, fresh_state(layers(), adapter, 7)[f"{name}.lora_A.weight"])
        assert torch.equal(module.weight, before[name])
        if kind == "dora":
            norm_O = torch.linalg.vector_norm(before[name].float().flatten(1), dim=1)
            torch.testing.assert_close(state[f"{name}.lora_magnitude_vector"].flatten(), norm_O)
    assert all(tensor.dtype == torch.float32 and not tensor.requires_grad for tensor in state.values())
    assert len(state) == (6 if kind == "dora" else 4)


def test_gaussian_is_what_diffusers_scripts_start_from():
    """`LoraConfig(init_lora_weights="gaussian")`: deviation 1 / rank, by PEFT itself with the same seed."""
    rank = 4
    wide = {"linear": torch.nn.Linear(300, 10)}
    down = fresh_state(wide, LowRankAdapter(rank=rank, init="gaussian"), 7)["linear.lora_A.weight"]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(7)
        config = LoraConfig(r=rank, init_lora_weights="gaussian", target_modules=[LAYER])
        theirs = inject_adapter_in_model(config, torch.nn.ModuleDict({LAYER: torch.nn.Linear(300, 10)}))
    assert down.std().item() == pytest.approx(1 / rank, rel=0.1)
    their_std = theirs.get_submodule(LAYER).lora_A["default"].weight.std().item()
    assert their_std == pytest.approx(1 / rank, rel=0.1)
    uniform = fresh_state(wide, LowRankAdapter(rank=rank), 7)["linear.lora_A.weight"]
    assert down.std() / uniform.std() > 5, "at rank 4 the two starts are far apart"


def test_orthogonal_changes_nothing_yet():
    state = fresh_state({"linear": torch.nn.Linear(6, 10)}, LowRankAdapter(rank=4, init="orthogonal"), 7)
    down, up = state["linear.lora_A.weight"], state["linear.lora_B.weight"]
    assert up.any() and down.any() and (up @ down).abs().max() < 1e-6
    for wrong in ({"rank": 3}, {"rank": 4, "targets": ("convolutions",)}):
        with pytest.raises(ValidationError, match="even ranks on linear layers"):
            LowRankAdapter(init="orthogonal", **wrong)


def test_the_seed_alone_decides():
    adapter = LowRankAdapter(rank=4)
    random = torch.get_rng_state()
    first = fresh_state(layers(), adapter, 7)
    assert torch.equal(torch.get_rng_state(), random)
    torch.rand(3)
    again, other = fresh_state(layers(), adapter, 7), fresh_state(layers(), adapter, 8)
    for key, tensor in first.items():
        assert torch.equal(tensor, again[key])
        assert torch.equal(tensor, other[key]) == ("lora_B" in key)


def test_the_models_own_layers_are_not_wrapped(tiny_model: Any):
    unet = base_of(tiny_model).unet
    names = [name for name, module in unet.named_modules() if isinstance(module, torch.nn.Linear)][:3]
    kinds = [type(module) for module in unet.modules()]
    fresh_state({name: unet.get_submodule(name) for name in names}, LowRankAdapter(rank=2), 0)
    assert [type(module) for module in unet.modules()] == kinds
    assert not hasattr(unet, "peft_config")
