"""A model with one fresh adapter to train: PEFT's low-rank layers, or vectors that stand for a word."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.dora import DoraConv2dLayer
from torch.nn import functional as F

from harness.models.adapter_file import CLIP_KEYS, TEXT_BODY
from harness.models.encoding import Encoded, PromptEncoder, text_body
from harness.models.model import ParameterGroup
from harness.models.targets import text_targets, unet_targets
from harness.models.textual_inversion import (
    ENCODERS,
    stand_in,
    standing_in,
    start_vectors,
    table,
    written_out,
)
from harness.spec.adapter import AdapterSpec, LowRankAdapter, TextualInversion

NAME = "trained"


class TrainableAdapter:
    """The `Trainable` of an SDXL pipeline; made by `attach`."""

    def __init__(
        self,
        unet: Callable[..., Any],
        dtype: torch.dtype,
        *,
        parameters: Mapping[str, torch.nn.Parameter],
        fixed: Mapping[str, torch.Tensor],
        dropping: Sequence[torch.nn.Module],
        encode: Callable[[str], Encoded],
    ) -> None:
        self._unet = unet
        self._dtype = dtype  # the base's
        self._parameters = parameters
        self._fixed = fixed
        self._dropping = dropping
        self._encode = encode

    def groups(self) -> list[ParameterGroup]:
        """The adapter's parameters, fp32, each once; A matrices and word vectors are `down`."""
        found: dict[tuple[str, str], list[torch.nn.Parameter]] = {}
        for key, parameter in self._parameters.items():
            part = "unet" if key.startswith("unet.") else "text_encoders"
            side = "up" if ".lora_B." in key or "lora_magnitude_vector" in key else "down"
            found.setdefault((part, side), []).append(parameter)
        return [
            ParameterGroup(part=part, side=side, parameters=parameters)  # type: ignore[arg-type]
            for (part, side), parameters in found.items()
        ]

    def predict(
        self,
        noisy_BChw: torch.Tensor,
        timesteps_B: torch.Tensor,
        captions: Sequence[str],
        time_ids_B6: torch.Tensor,
    ) -> torch.Tensor:
        """The UNet's output, computed in the base's precision, returned in fp32.

        Dropout acts where gradients are kept, so that a loss under `torch.no_grad` is of the whole adapter.
        """
        for module in self._dropping:
            module.training = torch.is_grad_enabled()
        encoded = {caption: self._encode(caption) for caption in dict.fromkeys(captions)}
        predicted = self._unet(
            noisy_BChw.to(self._dtype),
            timesteps_B,
            encoder_hidden_states=torch.cat([encoded[caption].embeds_1TD for caption in captions]),
            added_cond_kwargs={
                "text_embeds": torch.cat([encoded[caption].pooled_1P for caption in captions]),
                "time_ids": time_ids_B6.to(noisy_BChw.device),
            },
            return_dict=False,
        )[0]
        return predicted.float()

    def state_dict(self) -> dict[str, torch.Tensor]:
        """A copy of the adapter as its file has it: fp32, on the CPU."""
        tensors = {**self._parameters, **self._fixed}
        return {key: t.detach().to("cpu", torch.float32, copy=True) for key, t in sorted(tensors.items())}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Put back what `state_dict` gave."""
        assert state.keys() == self._parameters.keys() | self._fixed.keys(), (
            "the state is of an adapter on other modules"
        )
        with torch.no_grad():
            for key, parameter in self._parameters.items():
                parameter.copy_(state[key])


@contextmanager
def attach(
    pipeline: Any, adapter: AdapterSpec, seed: int, *, checkpointing: bool = False, compiled: bool = False
) -> Iterator[TrainableAdapter]:
    """Attach a fresh adapter; on leaving, the model is exactly what it was, global random state included.

    Low rank: A is Kaiming-uniform with a = √5 and B is zero, as in LoRA's reference code and by PEFT's
    default: unlike the gaussian of deviation 1 / rank, this does not make the start depend on the rank. The
    numbers come from a CPU generator of this seed, whatever the device and the base's precision; DoRA's
    magnitudes start at the norms of the weights. Textual inversion starts from a word's own embedding and
    draws no numbers.

    Captions are encoded once each where the text encoders are frozen, else anew in each step, with gradients.
    `checkpointing` computes the UNet's activations again in the backward pass; `compiled` runs the UNet
    through torch.compile. Raises ModelError where `adapter.blocks` name nothing, or the tokenizers do not
    know a word.
    """
    assert not is_attached(pipeline), "one adapter is trained at a time"
    unet, dtype = pipeline.unet, pipeline.unet.dtype
    words = PromptEncoder(pipeline, acts=False)
    encode: Callable[[str], Encoded] = words.differentiable
    parameters: dict[str, torch.nn.Parameter] = {}
    fixed: dict[str, torch.Tensor] = {}
    dropping: list[torch.nn.Module] = []
    with ExitStack() as stack:
        match adapter:
            case LowRankAdapter():
                parameters, dropping = stack.enter_context(_low_rank(pipeline, adapter, seed))
                if not adapter.text_encoders:
                    encode = words.negative
            case TextualInversion():
                parameters, fixed = stack.enter_context(_embedding(pipeline, adapter))
                written = stand_in(pipeline, adapter.word)
                encode = partial(_written_out, words, adapter, written)
        if checkpointing:
            stack.enter_context(_checkpointed(unet))
        yield TrainableAdapter(
            torch.compile(unet) if compiled else unet,
            dtype,
            parameters=parameters,
            fixed=fixed,
            dropping=dropping,
            encode=encode,
        )


def is_attached(pipeline: Any) -> bool:
    """True inside `attach`."""
    return hasattr(pipeline.unet, "peft_config") or bool(table(pipeline.text_encoder)._forward_hooks)


def _written_out(words: PromptEncoder, adapter: TextualInversion, written: str, caption: str) -> Encoded:
    return words.differentiable(written_out(caption, adapter.word, adapter.vectors, written=written))


@contextmanager
def _embedding(
    pipeline: Any, adapter: TextualInversion
) -> Iterator[tuple[dict[str, torch.nn.Parameter], dict[str, torch.Tensor]]]:
    """The vectors, trainable, by the keys of their file; and where they started."""
    starts = start_vectors(pipeline, adapter.initial or adapter.word, adapter.vectors)
    learnt = [torch.nn.Parameter(start.clone()) for start in starts]
    with standing_in(pipeline, stand_in(pipeline, adapter.word), learnt):
        yield (
            dict(zip(CLIP_KEYS, learnt, strict=True)),
            {f"{key}_start": start for key, start in zip(CLIP_KEYS, starts, strict=True)},
        )


@contextmanager
def _low_rank(
    pipeline: Any, adapter: LowRankAdapter, seed: int
) -> Iterator[tuple[dict[str, torch.nn.Parameter], list[torch.nn.Module]]]:
    """PEFT's layers in the UNet and, where asked for, both text encoders: their parameters by diffusers' key.

    Also gives the modules whose `training` turns dropout on and off.
    """
    places = {"unet": (pipeline.unet, unet_targets(pipeline.unet, adapter))}
    if adapter.text_encoders:
        for _, name in ENCODERS:
            body = text_body(getattr(pipeline, name))
            places[name] = (body, text_targets(body, whole=name == "text_encoder_2"))
    generator = torch.Generator().manual_seed(seed)
    parameters: dict[str, torch.nn.Parameter] = {}
    dropping: list[torch.nn.Module] = []
    try:
        for part, (root, names) in places.items():
            config = LoraConfig(
                r=adapter.rank,
                lora_alpha=adapter.alpha_value,  # type: ignore[arg-type, unused-ignore]
                lora_dropout=adapter.dropout,
                target_modules=names,
                use_rslora=adapter.kind == "rslora",
                use_dora=adapter.kind == "dora",
            )
            with torch.random.fork_rng():
                inject_adapter_in_model(config, root, NAME)
            layers = {name: root.get_submodule(name) for name in names}
            parameters |= _parameters(part, layers, generator)
            if adapter.dropout > 0:
                dropping += [module for layer in layers.values() for module in _dropping(layer)]
        yield parameters, dropping
    finally:
        for root, names in places.values():
            _unwrap(root, names)


def _dropping(layer: Any) -> list[torch.nn.Module]:
    """What decides on dropout: PEFT's layer asks itself whether it is trained, and so does its nn.Dropout."""
    assert isinstance(layer, LoraLayer)
    for dora in layer.lora_magnitude_vector.values():
        if isinstance(dora, DoraConv2dLayer):
            # Under dropout PEFT gives this convolution fp32 input and a weight of the base's precision.
            dora.conv_fn = lambda x, weight, **how: F.conv2d(x, weight.to(x.dtype), **how)
    return [layer, layer.lora_dropout[NAME]]


def _parameters(
    part: str, layers: Mapping[str, torch.nn.Module], generator: torch.Generator
) -> dict[str, torch.nn.Parameter]:
    """The fresh parameters in fp32. PEFT has them in the base's dtype, where small updates would vanish."""
    prefix = f"{part}." if part == "unet" else f"{part}.{TEXT_BODY}"
    found = {}
    for name, layer in layers.items():
        for inner, parameter in sorted(layer.named_parameters()):
            if not inner.startswith("lora_"):
                continue
            assert isinstance(layer, LoraLayer)
            parameter.data = _initial(inner, parameter, layer, generator).to(parameter.device)
            key = inner.replace(f".{NAME}", "")
            found[f"{prefix}{name}.{key.removesuffix('.weight') if 'magnitude' in key else key}"] = parameter
    return found


def _initial(
    name: str, parameter: torch.nn.Parameter, layer: LoraLayer, generator: torch.Generator
) -> torch.Tensor:
    if name.startswith("lora_magnitude_vector."):
        weight = layer.get_base_layer().weight.detach().float()
        inputs = tuple(range(1, weight.ndim))
        return torch.linalg.vector_norm(weight, dim=inputs).reshape(parameter.shape)
    start = torch.zeros(parameter.shape, dtype=torch.float32)
    if name.startswith("lora_A."):
        torch.nn.init.kaiming_uniform_(start, a=math.sqrt(5), generator=generator)
    return start


def _unwrap(root: torch.nn.Module, names: Sequence[str]) -> None:
    for name in names:
        layer = root.get_submodule(name)
        if isinstance(layer, LoraLayer):
            parent, _, child = name.rpartition(".")
            setattr(root.get_submodule(parent), child, layer.get_base_layer())
    if hasattr(root, "peft_config"):
        del root.peft_config


@contextmanager
def _checkpointed(unet: Any) -> Iterator[None]:
    """Gradient checkpointing in every block, and on leaving every module as it was."""
    names = ("gradient_checkpointing", "_gradient_checkpointing_func")
    before = [(m, name, vars(m)[name]) for m in unet.modules() for name in names if name in vars(m)]
    unet.enable_gradient_checkpointing()
    try:
        yield
    finally:
        for module in unet.modules():
            for name in names:
                vars(module).pop(name, None)
        for module, name, value in before:
            vars(module)[name] = value
