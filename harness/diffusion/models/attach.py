"""A model with fresh adapters to train: low-rank ones of one or several runs, or one of another kind.

The UNet's transformer blocks can be compiled; equal blocks are compiled once.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Literal

import torch
from diffusers.models.attention import BasicTransformerBlock

from harness.config.schema.adapter import LowRankAdapter, OftAdapter, ProductAdapter, TextualInversion
from harness.config.weights.layout import CLIP_KEYS
from harness.diffusion.adapters.adapter import ParameterGroup
from harness.diffusion.adapters.grouped import spans
from harness.diffusion.adapters.init import peft_layers
from harness.diffusion.adapters.packed import Pass, low_rank
from harness.diffusion.adapters.textual_inversion import stand_in, standing_in, start_vectors, written_out
from harness.diffusion.models.model import Fresh, Member
from harness.diffusion.models.text_encoding import Encoded, PromptEncoder


@contextmanager
def compiled_blocks(unet: torch.nn.Module) -> Iterator[None]:
    """Each block is compiled when it is first called, or called in another shape or with other layers in it.

    As diffusers' `compile_repeated_blocks`, which cannot be undone. On leaving, nothing compiled is left:
    PyTorch compiles one function only so many times, and would count the next pack's blocks with these.
    """
    blocks: list[Any] = [module for module in unet.modules() if isinstance(module, BasicTransformerBlock)]
    with ExitStack() as undone:
        undone.callback(torch.compiler.reset)
        for block in blocks:
            block.forward = torch.compile(block.forward, dynamic=False)
            undone.callback(delattr, block, "forward")
        yield


Encode = Callable[[str], Encoded]

MARK = "_harness_trains"  # an attribute of the UNet while adapters are attached


class TrainablePack:
    """The `Trainable` of an SDXL pipeline; made by `attach`."""

    def __init__(
        self,
        unet: Callable[..., Any],
        dtype: torch.dtype,
        *,
        members: Sequence[Member],
        encoders: Sequence[Encode],
        current: Pass,
    ) -> None:
        self.members = members
        self._unet = unet
        self._dtype = dtype  # the base's
        self._encoders = encoders  # one per member; the same one encodes a caption once for all
        self._current = current

    def predict(
        self,
        noisy_BChw: torch.Tensor,
        timesteps_B: torch.Tensor,
        captions: Sequence[str],
        time_ids_B6: torch.Tensor,
        *,
        counts: Sequence[int] | None = None,
        dropout_seeds: Sequence[int] | None = None,
    ) -> torch.Tensor:
        """The UNet's output, computed in the base's precision, returned in fp32."""
        counts = [len(captions)] if counts is None else counts
        seeds = [0] * len(counts) if dropout_seeds is None else dropout_seeds
        trials = [trial for trial, count in enumerate(counts) for _ in range(count)]
        assert len(counts) == len(self.members) and len(trials) == len(captions)
        self._current.dropout_seeds = seeds
        words = self._words(captions, trials)
        self._current.trials = trials
        self._current.rows = spans(trials)
        predicted = self._unet(
            noisy_BChw.to(self._dtype),
            timesteps_B,
            encoder_hidden_states=torch.cat([encoded.embeds_1TD for encoded in words]),
            added_cond_kwargs={
                "text_embeds": torch.cat([encoded.pooled_1P for encoded in words]),
                "time_ids": time_ids_B6.to(noisy_BChw.device),
            },
            return_dict=False,
        )[0]
        return predicted.float()

    def _words(self, captions: Sequence[str], trials: Sequence[int]) -> list[Encoded]:
        """Each caption under its member's encoder: each distinct one once."""
        found: dict[tuple[str, Encode], Encoded] = {}
        for caption, trial in zip(captions, trials, strict=True):
            encode = self._encoders[trial]
            if (caption, encode) not in found:
                self._current.only = trial
                found[caption, encode] = encode(caption)
        self._current.only = None
        return [
            found[caption, self._encoders[trial]] for caption, trial in zip(captions, trials, strict=True)
        ]


class LoneMember:
    """An adapter that is trained alone, by the keys of its tensors; those of `fixed` only come along."""

    def __init__(
        self,
        part: Literal["unet", "text_encoders"],
        learnt: Mapping[str, torch.nn.Parameter],
        fixed: Mapping[str, torch.Tensor],
    ) -> None:
        self._part: Literal["unet", "text_encoders"] = part
        self._learnt, self._fixed = learnt, fixed

    def groups(self) -> list[ParameterGroup]:
        """All parameters at one rate, fp32."""
        return [ParameterGroup(part=self._part, side="down", parameters=list(self._learnt.values()))]

    def clear_gradients(self) -> None:
        """Set them to zero: a step in which no row has a learnt word gives none."""
        for parameter in self._learnt.values():
            parameter.grad = torch.zeros_like(parameter)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """A copy of the adapter as its file has it: fp32, on the CPU."""
        tensors = {**self._learnt, **self._fixed}
        return {key: t.detach().to("cpu", torch.float32, copy=True) for key, t in sorted(tensors.items())}

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Put back what `state_dict` gave."""
        assert state.keys() == self._learnt.keys() | self._fixed.keys(), (
            "the state is of an adapter on other modules"
        )
        with torch.no_grad():
            for key, parameter in self._learnt.items():
                parameter.copy_(state[key])

    def trimmed(self, number: int, values: torch.Tensor) -> torch.Tensor:
        """All of it: there is no padding."""
        return values

    def padded(self, number: int, values: torch.Tensor) -> torch.Tensor:
        """The same."""
        return values


@contextmanager
def attach(
    pipeline: Any, fresh: Sequence[Fresh], *, checkpointing: bool = False, compiled: bool = False
) -> Iterator[TrainablePack]:
    """Attach fresh adapters; on leaving, the model is exactly what it was, global random state included.

    Captions are encoded once each where the text encoders are frozen, else anew in each step, with gradients.
    `checkpointing` computes the UNet's activations again in the backward pass; `compiled` runs the UNet's
    transformer blocks through torch.compile. Raises ModelError where `adapter.blocks` name nothing, or the
    tokenizers do not know a word.
    """
    assert not is_attached(pipeline), "one pack is trained at a time"
    unet, words, current = pipeline.unet, PromptEncoder(pipeline, acts=False), Pass()
    with ExitStack() as stack:
        match [one.adapter for one in fresh]:
            case [TextualInversion() as adapter]:
                members: Sequence[Member] = [stack.enter_context(_word(pipeline, adapter))]
                written = stand_in(pipeline, adapter.word)
                encoders: list[Encode] = [partial(_written_out, words, adapter, written)]
            case [(ProductAdapter() | OftAdapter()) as adapter]:
                seed = fresh[0].seed
                learnt = stack.enter_context(peft_layers(unet, adapter, 0 if seed is None else seed))
                members, encoders = [LoneMember("unet", learnt, {})], [words.negative]
            case adapters:
                low = [adapter for adapter in adapters if isinstance(adapter, LowRankAdapter)]
                assert len(low) == len(fresh), "these kinds are trained alone, not in a pack"
                members = stack.enter_context(low_rank(pipeline, low, [one.seed for one in fresh], current))
                encoders = [
                    partial(PromptEncoder.differentiable, words) if adapter.text_encoders else words.negative
                    for adapter in low
                ]
        if checkpointing:
            stack.enter_context(_checkpointed(unet))
        stack.enter_context(_marked(pipeline))
        if compiled:
            stack.enter_context(compiled_blocks(unet))
        yield TrainablePack(
            unet,
            unet.dtype,
            members=members,
            encoders=encoders,
            current=current,
        )


def is_attached(pipeline: Any) -> bool:
    """True inside `attach`."""
    return hasattr(pipeline.unet, MARK)


def _written_out(words: PromptEncoder, adapter: TextualInversion, written: str, caption: str) -> Encoded:
    return words.differentiable(written_out(caption, adapter.word, adapter.vectors, written=written))


@contextmanager
def _word(pipeline: Any, adapter: TextualInversion) -> Iterator[LoneMember]:
    """The vectors, trainable: they start from a word's own embedding, which draws no numbers."""
    starts = start_vectors(pipeline, adapter.initial or adapter.word, adapter.vectors)
    learnt = [torch.nn.Parameter(start.clone()) for start in starts]
    with standing_in(pipeline, stand_in(pipeline, adapter.word), learnt):
        yield LoneMember(
            "text_encoders",
            dict(zip(CLIP_KEYS, learnt, strict=True)),
            {f"{key}_start": start for key, start in zip(CLIP_KEYS, starts, strict=True)},
        )


@contextmanager
def _marked(pipeline: Any) -> Iterator[None]:
    setattr(pipeline.unet, MARK, True)
    try:
        yield
    finally:
        delattr(pipeline.unet, MARK)


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
