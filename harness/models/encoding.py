"""From words to what the UNet is conditioned on: plain prompts by the pipeline, weighted ones by compel.

compel's weighting scales the tokens' embeddings away from those of the empty prompt; the pooled embedding is
of the text as written, as compel has it.
"""

import functools
from dataclasses import dataclass
from typing import Any

import torch
from compel import Compel, CompelForSDXL, ReturnedEmbeddingsType
from compel.prompt_parser import FlattenedPrompt, Fragment
from pyparsing import ParseBaseException

from harness.errors import ModelError

CACHED_PROMPTS = 256


@dataclass(frozen=True, kw_only=True, eq=False)
class Encoded:
    """One encoded prompt, on the model's device. T tokens, D cross-attention width, P pooled width."""

    embeds_1TD: torch.Tensor
    pooled_1P: torch.Tensor


class PromptEncoder:
    """Encodes prompts for one pipeline, base or refiner, each distinct text once."""

    def __init__(self, pipeline: Any) -> None:
        self._pipeline = pipeline
        self._tokenizers = [t for t in (pipeline.tokenizer, pipeline.tokenizer_2) if t is not None]
        self._limit: int = self._tokenizers[0].model_max_length
        self._weigh = _weigher(pipeline)
        self.positive = functools.lru_cache(maxsize=CACHED_PROMPTS)(self._encode)

    def negative(self, text: str) -> Encoded:
        """A negative prompt. The empty one is zeros where the model's configuration says so."""
        encoded = self.positive(text)
        if text or not self._pipeline.config.force_zeros_for_empty_prompt:
            return encoded
        return Encoded(
            embeds_1TD=torch.zeros_like(encoded.embeds_1TD), pooled_1P=torch.zeros_like(encoded.pooled_1P)
        )

    def _encode(self, text: str) -> Encoded:
        # Not inference mode: what is made here may be conditioned on in training.
        with torch.inference_mode(False), torch.no_grad():
            encoded = self._weighted(text) if _is_weighted(text) else self._plain(text)
        if encoded.embeds_1TD.shape[1] != self._limit:
            raise _too_long(text, self._limit)
        return encoded

    def _plain(self, text: str) -> Encoded:
        text = text.replace(r"\(", "(").replace(r"\)", ")")  # compel's escape for a bracket that is no weight
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
        embeds, pooled = self._weigh(text)
        dtype = self._pipeline.text_encoder_2.dtype
        return Encoded(embeds_1TD=embeds.to(dtype), pooled_1P=pooled.to(dtype))


def _weigher(pipeline: Any) -> Any:
    """Compel for this pipeline: both encoders for a base, the second alone for a refiner."""
    if pipeline.text_encoder is not None:
        both = CompelForSDXL(pipeline)

        def weigh(text: str) -> tuple[torch.Tensor, torch.Tensor]:
            encoded = both(text)
            return encoded.embeds, encoded.pooled_embeds

        return weigh
    return Compel(
        tokenizer=pipeline.tokenizer_2,
        text_encoder=pipeline.text_encoder_2,
        returned_embeddings_type=ReturnedEmbeddingsType.PENULTIMATE_HIDDEN_STATES_NON_NORMALIZED,
        requires_pooled=True,
        truncate_long_prompts=False,
    )


def _is_weighted(text: str) -> bool:
    """True where compel finds weights. All other text takes the pipeline's own way, bit for bit."""
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
