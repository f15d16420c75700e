"""Textual inversion (Gal et al. 2022): learnt vectors that stand for a word, in both text encoders.

The word is written out as often as there are vectors, and a hook on each encoder's table of token embeddings
puts vector k mod n in place of the word's k-th occurrence. Neither the tokenizers nor the tables change, and
weighting by compel works as for any other words.

Shape legend: N vectors, D width of an encoder, B rows, T tokens.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from harness.errors import ModelError

ENCODERS = (("tokenizer", "text_encoder"), ("tokenizer_2", "text_encoder_2"))
_LETTER = r"[^\W\d_]"


@dataclass(frozen=True, kw_only=True, eq=False)
class Embedding:
    """The vectors [N, D] that stand for `word`, one tensor per text encoder.

    `start` is where training began; null where the file does not say, and then only scale 1 is known.
    """

    word: str
    learnt_ND: tuple[torch.Tensor, torch.Tensor]
    start_ND: tuple[torch.Tensor, torch.Tensor] | None

    @property
    def vectors(self) -> int:
        """How many tokens stand for the word."""
        return self.learnt_ND[0].shape[0]

    def at(self, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
        """The vectors start + scale · (learnt − start). Raises ModelError where the start is not known."""
        if scale == 1:
            return self.learnt_ND
        if self.start_ND is None:
            raise ModelError(
                f"the embedding of {self.word!r} does not say where its vectors started, so it can act at "
                f"scale 1 alone, not {scale:g}"
            )
        first, second = (
            start + scale * (learnt - start)
            for start, learnt in zip(self.start_ND, self.learnt_ND, strict=True)
        )
        return first, second


def written_out(text: str, word: str, vectors: int) -> str:
    """The text with each `word` written `vectors` times; compel's weight of a word then weighs them all."""
    pattern = rf"(?<!{_LETTER}){re.escape(word)}(?!{_LETTER})(?P<weight>\++|-+(?=[\s,.;:)]|$))?"

    def several(found: re.Match[str]) -> str:
        weight = found["weight"] or ""
        words = " ".join([found[0].removesuffix(weight)] * vectors)
        return f"({words}){weight}" if weight and vectors > 1 else words + weight

    return re.sub(pattern, several, text, flags=re.IGNORECASE)


def start_vectors(pipeline: Any, word: str, vectors: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A word's own embedding, once per vector: [N, D], fp32, on the encoders' device.

    Raises ModelError where the word is not one token.
    """
    first, second = (
        table(getattr(pipeline, encoder))
        .weight[token_of(getattr(pipeline, tokenizer), word)]
        .detach()
        .float()
        .repeat(vectors, 1)
        for tokenizer, encoder in ENCODERS
    )
    return first, second


def token_of(tokenizer: Any, word: str) -> int:
    """The one token that is the word. Raises ModelError where there is none."""
    tokens = tokenizer(word, add_special_tokens=False).input_ids
    if len(tokens) != 1 or tokens[0] == tokenizer.unk_token_id:
        raise ModelError(
            f"{word!r} is {len(tokens)} tokens to the model's tokenizer, and textual inversion needs a word "
            "that is one token in both; choose a shorter, common word"
        )
    return tokens[0]


def table(encoder: torch.nn.Module) -> torch.nn.Embedding:
    """A text encoder's table of token embeddings."""
    found = encoder.get_input_embeddings()  # type: ignore[operator]
    assert isinstance(found, torch.nn.Embedding)
    return found


@contextmanager
def standing_in(pipeline: Any, word: str, vectors_ND: Sequence[torch.Tensor]) -> Iterator[None]:
    """While the block runs, the vectors stand for the word in both encoders; its text must be `written_out`.

    Autograd reaches the vectors. Raises ModelError where the word is not one token, or the vectors are of
    another model.
    """
    hooks = []
    try:
        for (tokenizer, encoder), vectors in zip(ENCODERS, vectors_ND, strict=True):
            embeddings = table(getattr(pipeline, encoder))
            if vectors.shape[1] != embeddings.embedding_dim:
                raise ModelError(
                    f"the embedding of {word!r} has vectors of width {vectors.shape[1]}, and the model's "
                    f"{encoder} takes {embeddings.embedding_dim}; it was trained on another model"
                )
            hook = _Hook(token_of(getattr(pipeline, tokenizer), word), vectors)
            hooks.append(embeddings.register_forward_hook(hook))
        yield
    finally:
        for handle in hooks:
            handle.remove()


class _Hook:
    """A forward hook that puts vector k mod N in place of the k-th occurrence of the token in each row."""

    def __init__(self, token: int, vectors_ND: torch.Tensor) -> None:
        self._token = token
        self._vectors_ND = vectors_ND

    def __call__(
        self, module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], out_BTD: torch.Tensor
    ) -> torch.Tensor:
        is_word_BT = inputs[0] == self._token
        place_BT = (is_word_BT.cumsum(dim=-1) - 1) % self._vectors_ND.shape[0]
        vectors_BTD = self._vectors_ND.to(out_BTD)[place_BT]
        return torch.where(is_word_BT[..., None], vectors_BTD, out_BTD)
