"""Textual inversion (Gal et al. 2022): learnt vectors that stand for a word, in both text encoders.

The word is written out as often as there are vectors, and a hook on each encoder's table of token embeddings
puts vector k mod n in place of the word's k-th occurrence. A word of several tokens is written as a lone
letter, which is one token to every CLIP tokenizer. Neither the tokenizers nor the tables change, and compel
weighs the words as any others.

Shape legend: N vectors, D width of an encoder, B rows, T tokens.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from harness.config.loading.prompt_syntax import holds_word, word_pattern
from harness.diffusion.adapters.adapter import Verbatim
from harness.errors import ModelError

ENCODERS = (("tokenizer", "text_encoder"), ("tokenizer_2", "text_encoder_2"))
STAND_INS = "qxzjkv"  # letters that prompts seldom have as a word


def stand_in(pipeline: Any, word: str) -> str:
    """What is written for a word: itself where it is one token in both encoders, else a letter, which is."""
    if all(len(_tokens(getattr(pipeline, tokenizer), word)) == 1 for tokenizer, _ in ENCODERS):
        return word
    return STAND_INS[hashlib.sha256(word.encode()).digest()[0] % len(STAND_INS)]


def written_out(text: str, word: str, vectors: int, *, written: str) -> str:
    """The text with each `word` as `vectors` times `written`; compel's weight of a word then weighs them all.

    Raises ModelError where the text has the stand-in of the word as a word of its own.
    """
    if written != word and holds_word(text, written):
        raise ModelError(
            f"prompt {text!r} has the word {written!r}, which is written for {word!r} where a textual "
            "inversion acts; write it in another way"
        )
    words = " ".join([written] * vectors)
    if isinstance(text, Verbatim):
        return Verbatim(re.sub(word_pattern(word), words, text, flags=re.IGNORECASE))

    def several(found: re.Match[str]) -> str:
        weight = found["weight"] or ""
        return f"({words}){weight}" if weight and vectors > 1 else words + weight

    pattern = rf"{word_pattern(word)}(?P<weight>\++|-+(?=[\s,.;:)]|$))?"
    return re.sub(pattern, several, text, flags=re.IGNORECASE)


def start_vectors(pipeline: Any, word: str, vectors: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A word's own embedding (the mean of its tokens'), once per vector: [N, D], fp32, on their device.

    Raises ModelError where the tokenizers do not know the word.
    """
    first, second = (
        table(getattr(pipeline, encoder))
        .weight[_tokens(getattr(pipeline, tokenizer), word)]
        .detach()
        .float()
        .mean(dim=0)
        .repeat(vectors, 1)
        for tokenizer, encoder in ENCODERS
    )
    return first, second


def _tokens(tokenizer: Any, word: str) -> list[int]:
    tokens: list[int] = tokenizer(word, add_special_tokens=False).input_ids
    if not tokens or tokenizer.unk_token_id in tokens:
        raise ModelError(
            f"{word!r} is not a word to the model's tokenizer, so textual inversion cannot stand for it; "
            "choose a common word"
        )
    return tokens


def table(encoder: torch.nn.Module) -> torch.nn.Embedding:
    """A text encoder's table of token embeddings."""
    found = encoder.get_input_embeddings()  # type: ignore[operator]
    assert isinstance(found, torch.nn.Embedding)
    return found


@contextmanager
def standing_in(pipeline: Any, word: str, vectors_ND: Sequence[torch.Tensor]) -> Iterator[None]:
    """While the block runs, the vectors stand for `word`, one token, in both encoders.

    What the word of an adapter is written as says `stand_in`; the text must be `written_out`. Autograd
    reaches the vectors. Raises ModelError where they are of another model.
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
            (token,) = _tokens(getattr(pipeline, tokenizer), word)
            hook = _Hook(token, vectors)
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
