"""From prompts to embeddings: plain ones by the pipeline, weighted ones by compel; and embeddings in files.

compel scales the tokens' embeddings away from those of the empty prompt; the pooled embedding is that of the
text as written. An adapter's text-encoder parts and embedding act only on the prompt that they are given
with.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from compel import Compel, ReturnedEmbeddingsType
from compel.prompt_parser import FlattenedPrompt, Fragment
from pyparsing import ParseBaseException
from safetensors import safe_open
from safetensors.torch import save_file

from harness.config.loading.prompt_syntax import fault_of
from harness.diffusion.adapters.adapter import Adapter, Embedding, LowRank, Verbatim
from harness.diffusion.adapters.apply import acting_on_all
from harness.diffusion.adapters.init import text_modules
from harness.diffusion.adapters.textual_inversion import stand_in, standing_in, written_out
from harness.errors import ModelError

CACHED_PROMPTS = 1024  # 0.3 GB of SDXL's embeddings in half precision

Adapters = Sequence[tuple[Adapter, float]]  # those that act on one branch, each with its scale
CacheKey = tuple[str, tuple[tuple[int, float], ...]]  # a text, and what acts on it


@dataclass(frozen=True, kw_only=True, eq=False)
class Encoded:
    """One encoded prompt, on the model's device. T tokens, D cross-attention width, P pooled width."""

    embeds_1TD: torch.Tensor
    pooled_1P: torch.Tensor


class PromptEncoder:
    """Encodes prompts for one pipeline, base or refiner, each distinct text under the same adapters once.

    Adapters act on the base alone: with `acts=False` they are ignored.
    """

    def __init__(self, pipeline: Any, *, acts: bool) -> None:
        self._pipeline = pipeline
        self._acts = acts
        self._tokenizers = [t for t in (pipeline.tokenizer, pipeline.tokenizer_2) if t is not None]
        self._limit: int = self._tokenizers[0].model_max_length
        self._cache: dict[CacheKey, Encoded] = {}  # oldest use first

    def positive(self, text: str, adapters: Adapters = ()) -> Encoded:
        """A prompt as the adapters have it; without gradients.

        Raises ModelError where it is not in compel's syntax, too long once an embedding's word is written
        out, or where an adapter is of another model.
        """
        adapters = [(a, scale) for a, scale in adapters if self._acts and a.acts_on_text and scale != 0]
        key = text, tuple((adapter.identity, scale) for adapter, scale in adapters)
        # Not inference mode: what is made here may be conditioned on in training.
        with torch.inference_mode(False), torch.no_grad():
            encoded = self._cache.pop(key, None) or self._encode_with(text, adapters)
        self._keep(key, encoded)
        return encoded

    def knows(self, text: str) -> bool:
        """True where the text need not be encoded as long as no adapter acts on it."""
        return (text, ()) in self._cache

    def remember(self, text: str, *, embeds: torch.Tensor, pooled: torch.Tensor) -> None:
        """Take these, copied to the model's device, for what `positive` gives without adapters."""
        device = self._pipeline.device
        embeds, pooled = (tensor.to(device, copy=True) for tensor in (embeds, pooled))
        self._keep((text, ()), Encoded(embeds_1TD=embeds, pooled_1P=pooled))

    def _keep(self, key: CacheKey, encoded: Encoded) -> None:
        self._cache[key] = encoded
        if len(self._cache) > CACHED_PROMPTS:
            del self._cache[next(iter(self._cache))]

    def negative(self, text: str, adapters: Adapters = ()) -> Encoded:
        """A negative prompt. The empty one is zeros where the model's configuration says so."""
        return self._unconditional(text, self.positive(text, adapters))

    def differentiable(self, text: str) -> Encoded:
        """As `negative` with what is attached to the encoders now: with gradients, and never cached."""
        return self._unconditional(text, self._encode(text))

    def _unconditional(self, text: str, encoded: Encoded) -> Encoded:
        if text or not self._pipeline.config.force_zeros_for_empty_prompt:
            return encoded
        # A product, so that autograd finds its way through, if only to gradients of zero.
        return Encoded(embeds_1TD=encoded.embeds_1TD * 0, pooled_1P=encoded.pooled_1P * 0)

    def _encode_with(self, text: str, adapters: Adapters) -> Encoded:
        with self._acting(adapters):
            for embedding, _ in _embeddings(adapters):
                written = stand_in(self._pipeline, embedding.word)
                text = written_out(text, embedding.word, embedding.vectors, written=written)
            return self._encode(text)

    @contextmanager
    def _acting(self, adapters: Adapters) -> Iterator[None]:
        with ExitStack() as stack:
            for name in ("text_encoder", "text_encoder_2"):
                parts: list[tuple[LowRank, float]] = [(getattr(a, name), scale) for a, scale in adapters]
                if any(part for part, _ in parts):
                    stack.enter_context(acting_on_all(text_modules(getattr(self._pipeline, name)), parts))
            for embedding, scale in _embeddings(adapters):
                written = stand_in(self._pipeline, embedding.word)
                stack.enter_context(standing_in(self._pipeline, written, embedding.at(scale)))
            yield

    def _encode(self, text: str) -> Encoded:
        if isinstance(text, Verbatim):
            encoded = self._plain(str(text))
        elif _is_weighted(text):
            encoded = self._weighted(_unescaped(text, "[]"))
        else:
            encoded = self._plain(_unescaped(text))
        if encoded.embeds_1TD.shape[1] != self._limit:
            raise _too_long(text, self._limit)
        return encoded

    def _plain(self, text: str) -> Encoded:
        if any(len(tokenizer(text).input_ids) > self._limit for tokenizer in self._tokenizers):
            raise _too_long(text, self._limit)
        embeds, _, pooled, _ = self._pipeline.encode_prompt(
            prompt=text,
            device=self._pipeline.device,
            num_images_per_prompt=1,
            do_classifier_free_guidance=False,
        )
        return Encoded(embeds_1TD=embeds, pooled_1P=pooled)

    def _weighted(self, text: str) -> Encoded:
        # Not compel's own call: it forbids gradients, and trained encoders need them. And made anew for every
        # text: it keeps the empty prompt's embeddings, which are others under other adapters.
        *others, last = [weigher.build_conditioning_tensor(text) for weigher in _weighers(self._pipeline)]
        embeds, pooled = last
        embeds = torch.cat([*others, embeds], dim=-1)
        dtype = self._pipeline.text_encoder_2.dtype
        return Encoded(embeds_1TD=embeds.to(dtype), pooled_1P=pooled.to(dtype))


def _embeddings(adapters: Adapters) -> list[tuple[Embedding, float]]:
    found = [(adapter.embedding, scale) for adapter, scale in adapters if adapter.embedding is not None]
    words = [embedding.word for embedding, _ in found]
    if len(set(words)) < len(words):
        raise ModelError(
            f"several embeddings on one branch stand for {max(words, key=words.count)!r}; give one"
        )
    return found


def _weighers(pipeline: Any) -> list[Compel]:
    """Compel for each encoder of this pipeline; the last gives the pooled embedding too."""
    penultimate = ReturnedEmbeddingsType.PENULTIMATE_HIDDEN_STATES_NON_NORMALIZED
    return [
        Compel(
            tokenizer=tokenizer,
            text_encoder=encoder,
            returned_embeddings_type=penultimate,
            requires_pooled=encoder is pipeline.text_encoder_2,
            truncate_long_prompts=False,
        )
        for tokenizer, encoder in (
            (pipeline.tokenizer, pipeline.text_encoder),
            (pipeline.tokenizer_2, pipeline.text_encoder_2),
        )
        if encoder is not None
    ]


def _unescaped(text: str, brackets: str = "()[]") -> str:
    """Brackets that are letters; compel itself knows the escape of round ones alone."""
    for bracket in brackets:
        text = text.replace(f"\\{bracket}", bracket)
    return text


def _is_weighted(text: str) -> bool:
    """True where compel finds weights. All other text takes the pipeline's own way, bit for bit.

    Raises ModelError for what of compel is no weight: several prompts, and replacements while generating.
    """
    if (fault := fault_of(text, trained=True)) is not None:
        raise ModelError(f"prompt {text!r}: {fault}")
    try:
        conjunction = Compel.parse_prompt_string(text)
    except ParseBaseException as error:
        raise ModelError(
            f"prompt {text!r} is not in compel's syntax ({error}); escape brackets as \\( \\)"
        ) from error
    if len(conjunction.prompts) != 1 or conjunction.weights != [1.0]:
        return True
    prompt = conjunction.prompts[0]
    return not isinstance(prompt, FlattenedPrompt) or any(
        not isinstance(part, Fragment) or part.weight != 1 for part in prompt.children
    )


def _too_long(text: str, limit: int) -> ModelError:
    return ModelError(
        f"prompt {text!r} is longer than the {limit} tokens that the text encoders take; shorten it"
    )


class StoredTexts:
    """What a model's text encoders make of texts while no adapter acts on them; weights in compel's syntax.

    Each text is encoded alone, and its file holds it to the last bit.
    """

    def __init__(self, encoders: Mapping[str, PromptEncoder]) -> None:
        """Those of the base and, where there is one, of the refiner, by name."""
        self._encoders = encoders

    def unknown(self, texts: Iterable[str]) -> set[str]:
        """Those that would have to be encoded."""
        encoders = self._encoders.values()
        return {text for text in texts if not all(encoder.knows(text) for encoder in encoders)}

    def write(self, texts: Iterable[str], file: Path) -> None:
        """Encode them into a file. One that cannot be encoded is left out: generating with it says why."""
        tensors = {}
        for text in texts:
            with suppress(ModelError):
                for name, encoder in self._encoders.items():
                    encoded = encoder.positive(text)
                    embeds, pooled = _names(name, text)
                    tensors[embeds] = encoded.embeds_1TD.cpu().contiguous()
                    tensors[pooled] = encoded.pooled_1P.cpu().contiguous()
        save_file(tensors, file)

    def read(self, texts: Iterable[str], file: Path) -> None:
        """Know those of the texts that the file holds."""
        with safe_open(file, framework="pt") as stored:
            held = set(stored.offset_keys())
            for text in texts:
                for name, encoder in self._encoders.items():
                    embeds, pooled = _names(name, text)
                    if embeds in held:
                        encoder.remember(
                            text, embeds=stored.get_tensor(embeds), pooled=stored.get_tensor(pooled)
                        )


def _names(encoder: str, text: str) -> tuple[str, str]:
    return f"{encoder} embeds {text}", f"{encoder} pooled {text}"
