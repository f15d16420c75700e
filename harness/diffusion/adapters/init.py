"""Fresh adapters as PEFT makes them, and the layers they act on.

PEFT starts A Kaiming-uniform with a = √5, as LoRA's reference code does, or normal with deviation 1 / rank,
as diffusers' scripts ask for, and B at zero. DoRA's magnitudes start at the norms of the weights.
`grouped.py` applies the adapters row by row.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from peft import LoHaConfig, LoKrConfig, LoraConfig, OFTConfig, PeftConfig, inject_adapter_in_model
from torch import Tensor
from torch.nn import Parameter

from harness.config.schema.adapter import LowRankAdapter, OftAdapter, ProductAdapter, Target, TextTarget
from harness.config.weights.names import TEXT_PROJECTION
from harness.errors import ModelError

NAME, LAYER = "default", "layer"  # of the adapter and of its one layer, as PEFT is told


LayerAdapter = LowRankAdapter | ProductAdapter | OftAdapter  # those that act on layers


def configuration(adapter: LayerAdapter, modules: list[str]) -> PeftConfig:
    """PEFT's configuration of the adapter on these modules."""
    match adapter:
        case LowRankAdapter():
            return LoraConfig(
                r=adapter.rank,
                lora_alpha=adapter.alpha_value,
                lora_dropout=adapter.dropout,
                use_rslora=adapter.kind == "rslora",
                use_dora=adapter.kind == "dora",
                target_modules=modules,
            )
        case ProductAdapter(kind="loha"):
            return LoHaConfig(r=adapter.rank, alpha=adapter.alpha_value, target_modules=modules)
        case ProductAdapter():
            return LoKrConfig(
                r=adapter.rank,
                alpha=adapter.alpha_value,
                decompose_factor=adapter.factor or -1,
                target_modules=modules,
            )
        case OftAdapter():
            return OFTConfig(
                oft_block_size=adapter.block_size,
                use_cayley_neumann=False,  # a series that is orthogonal only near the start
                target_modules=modules,
            )


def fresh_state(modules: Mapping[str, Any], adapter: LowRankAdapter, seed: int) -> dict[str, Tensor]:
    """The adapter on these linear layers and convolutions, in their order: its tensors by `….lora_A.weight`.

    In fp32 on the CPU, whatever the layers' device and precision, and from `seed` alone. The layers stay as
    they are, and so does the global random state.
    """
    config = configuration(adapter, [LAYER])
    with torch.random.fork_rng(devices=[]):
        layers = {name: _wrapped(module, config) for name, module in modules.items()}
        torch.default_generator.manual_seed(seed)
        for layer in layers.values():
            _start(layer, adapter)
    state = {}
    for name, layer in layers.items():
        state[f"{name}.lora_A.weight"] = layer.lora_A[NAME].weight.detach()
        state[f"{name}.lora_B.weight"] = layer.lora_B[NAME].weight.detach()
        if adapter.kind == "dora":
            state[f"{name}.lora_magnitude_vector"] = layer.lora_magnitude_vector[NAME].weight.detach()
    return state


@contextmanager
def peft_layers(unet: Any, adapter: ProductAdapter | OftAdapter, seed: int) -> Iterator[dict[str, Parameter]]:
    """PEFT's own layers in the place of the UNet's, acting on all rows; on leaving, the UNet is itself.

    Yields their parameters, fp32, by `unet.<module>.<name>`. They depend on `seed` alone.
    """
    parameters = {}
    with ExitStack() as replaced:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Invalid `oft_block_size`")  # it takes the nearest
            torch.default_generator.manual_seed(seed)
            config = configuration(adapter, [LAYER])
            names = unet_targets(unet, adapter)
            layers = {name: _wrapped(unet.get_submodule(name), config) for name in names}
        for name, layer in layers.items():
            parent, _, own = name.rpartition(".")
            place, module = unet.get_submodule(parent), unet.get_submodule(name)
            layer.base_layer = module
            layer.to(module.weight.device).eval()  # in training PEFT draws a number in every pass
            for key, parameter in layer.named_parameters():
                if not key.startswith("base_layer."):
                    parameters[f"unet.{name}.{key.replace(f'.{NAME}', '')}"] = parameter
            replaced.callback(setattr, place, own, module)
            setattr(place, own, layer)
        yield parameters


def _start(layer: Any, adapter: LowRankAdapter) -> None:
    match adapter.init:
        case "kaiming":
            layer.reset_lora_parameters(NAME, True)
        case "gaussian":
            layer.reset_lora_parameters(NAME, "gaussian")
        case "orthogonal":
            layer.orthogonal_init(NAME)


def _wrapped(module: Any, config: PeftConfig) -> Any:
    """PEFT's layer for the module, with its own tensors on the CPU. It does not keep the module's weight."""
    base, weight = _like(module), module.weight.detach()
    if getattr(config, "use_dora", False):
        base.weight = torch.nn.Parameter(weight.float(), requires_grad=False)
    holder = torch.nn.ModuleDict({LAYER: base})
    inject_adapter_in_model(config, holder, adapter_name=NAME)
    base.weight = _without_memory(weight.shape)
    return holder[LAYER].to("cpu")


def _like(module: Any) -> Any:
    """A layer of the module's kind and shape."""
    base: Any
    if module.weight.ndim == 2:
        base = torch.nn.Linear(module.in_features, module.out_features, bias=False, device="meta")
    else:
        base = torch.nn.Conv2d(
            module.in_channels,
            module.out_channels,
            module.kernel_size,
            module.stride,
            module.padding,
            bias=False,
            device="meta",
        )
    base.weight = _without_memory(module.weight.shape)
    return base


def _without_memory(shape: torch.Size) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.zeros(()).expand(shape), requires_grad=False)


TARGETS: dict[Target, tuple[str, ...]] = {
    "attention": ("to_q", "to_k", "to_v", "to_out.0"),
    "feed_forward": ("ff.net.0.proj", "ff.net.2"),
    "projections": ("proj_in", "proj_out"),  # around the transformer blocks of an attention
    "time_embeddings": ("time_emb_proj",),  # of the residual blocks
    # Of the residual blocks and of what changes the size, not the UNet's first and last layer.
    "convolutions": ("conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv"),
}
TEXT_TARGETS: dict[TextTarget, tuple[str, ...]] = {
    "attention": ("q_proj", "k_proj", "v_proj", "out_proj"),
    "mlp": ("fc1", "fc2"),
}


def unet_targets(unet: torch.nn.Module, adapter: LayerAdapter) -> list[str]:
    """The modules that an adapter acts on, by name. Raises ModelError for blocks that have none."""
    suffixes = tuple(f".{suffix}" for target in adapter.targets for suffix in TARGETS[target])
    names = sorted(name for name, _ in unet.named_modules() if name.endswith(suffixes))
    if adapter.blocks is None:
        return names
    for block in adapter.blocks:
        if not any(name.startswith(f"{block}.") for name in names):
            raise ModelError(
                f"adapter.blocks has {block}, where the UNet has nothing of {', '.join(adapter.targets)}; "
                f"there is {', '.join(_blocks(names))}"
            )
    return [name for name in names if name.startswith(tuple(f"{block}." for block in adapter.blocks))]


def text_targets(body: torch.nn.Module, adapter: LowRankAdapter, *, whole: bool) -> list[str]:
    """The modules of a text encoder that the adapter acts on: of every layer (`whole`), or all but the last.

    SDXL takes the states before the last layer, which bears on the second encoder's pooled output alone.
    """
    suffixes = tuple(
        f".{suffix}" for target in adapter.text_encoder_targets for suffix in TEXT_TARGETS[target]
    )
    names = sorted(name for name, _ in body.named_modules() if name.endswith(suffixes))
    last = max(int(name.split(".")[2]) for name in names)
    return [name for name in names if whole or not name.startswith(f"encoder.layers.{last}.")]


def _blocks(names: Sequence[str]) -> list[str]:
    """The blocks that hold these modules, and the attentions and residual blocks in them."""
    found = set()
    for name in names:
        pieces = name.split(".")
        depth = 1 if pieces[0] == "mid_block" else 2
        found.add(".".join(pieces[:depth]))
        if pieces[depth] in ("attentions", "resnets"):
            found.add(".".join(pieces[: depth + 2]))
    return sorted(found)


def text_modules(encoder: Any) -> dict[str, torch.nn.Module]:
    """The modules of a text encoder that adapters name: within its body, and the projection beside it."""
    modules = dict(text_body(encoder).named_modules())
    if hasattr(encoder, TEXT_PROJECTION):
        modules[TEXT_PROJECTION] = getattr(encoder, TEXT_PROJECTION)
    return modules


def text_body(encoder: Any) -> torch.nn.Module:
    """The part of a text encoder that adapters name their modules in."""
    return encoder.text_model if hasattr(encoder, "text_model") else encoder
