r"""The syntax of prompts: compel's weights, what of other syntaxes is none here, AUTOMATIC1111's translation.

Weights are `word+`, `word--`, `(some words)++` and `(some words)1.3`. `\(`, `\)`, `\[` and `\]` are brackets
of the text itself. A caption of a dataset is data and has no syntax.
"""

import re
from collections.abc import Iterator

from harness.config.loading.files import one_line
from harness.errors import ConfigError

MOST_NESTED = 3  # brackets in brackets: compel takes four times as long for each more
MOST_NESTED_A1111 = 24  # 1.1 ** 24 is about 10
MOST_WEIGHT = 10.0
MOST_SIGNS = 24
A1111_STEP = 1.1

_LETTER = r"[^\W\d_]"
_ESCAPED = re.compile(r"\\.", flags=re.DOTALL)
_LORA = re.compile(r"<\s*(lora|lyco|hypernet)\s*:", flags=re.IGNORECASE)
_FUNCTION = re.compile(r"\.(and|blend|swap)\s*\(|\b(with|use)lora\s*\(", flags=re.IGNORECASE)
_A1111_WEIGHT = re.compile(r"\([^()]*:\s*[+-]?\d*\.?\d+\s*\)")
_SQUARE = re.compile(r"\[[^\[\]]*\]")
_WEIGHT = re.compile(r"\)(\d+(?:\.\d*)?)(\w?)")
_SIGNS = re.compile(r"(?<=[\w)])(\++|-+)")
_NOT_SAID = re.compile(r"\w[+-]+(?=[\s,.;:)]|$)|\w\+|\"")
_TOKEN = re.compile(r"\\[\\()\[\]]|[()\[\]]|:\s*([+-]?\d*\.?\d+)\s*(?=\))|[^\\()\[\]:]+|.", flags=re.DOTALL)


def word_pattern(word: str) -> str:
    """A regular expression for a word in a prompt, not for a part of one: `wrong`, and not in `wrongly`."""
    return rf"(?<!{_LETTER}){re.escape(word)}(?!{_LETTER})"


def holds_word(text: str, word: str) -> bool:
    """True where an adapter that stands for the word acts on this text."""
    return re.search(word_pattern(word), text, flags=re.IGNORECASE) is not None


def fault_of(text: str, *, trained: bool = False) -> str | None:
    """What in a prompt means something else than it looks, and how to write it; None if nothing.

    `trained`: of a prompt to train on, where square brackets are letters, as in `[V] dog`.
    """
    bare = _ESCAPED.sub("_", text)
    return next(_faults(text, bare, trained), None)


def _faults(text: str, bare: str, trained: bool) -> Iterator[str]:
    if found := _LORA.search(bare):
        yield f"{found[0]}…> loads nothing in a prompt; give the file to arms.adapters"
    if re.search(r"\bBREAK\b", bare):
        yield "BREAK is AUTOMATIC1111's and does nothing here; leave it out, or write break for the word"
    if _A1111_WEIGHT.search(bare) or (not trained and _SQUARE.search(bare)):
        try:
            meant = f"write {one_line(from_a1111(text), 60)!r}"
        except ConfigError as error:
            meant = str(error)
        yield (
            f"brackets in AUTOMATIC1111's syntax; {meant}, set prompt_syntax: a1111, or escape brackets that "
            "are text, as \\[ \\( \\) \\]"
        )
    if found := _FUNCTION.search(bare):
        yield f"compel's {found[0]}…) is not supported; write one prompt with weights"
    if re.search(r"\(\s*\)", bare):
        yield "empty brackets hold nothing to weigh; leave them out"
    if _nesting(bare) > MOST_NESTED:
        yield f"more than {MOST_NESTED} brackets in each other; write the weight as a number, (word)1.5"
    yield from _heavy(bare)


def _heavy(bare: str) -> Iterator[str]:
    for number, letter in _WEIGHT.findall(bare):
        if letter:
            yield f"a number after a bracket is its weight: write a space before {number}{letter}"
        elif float(number) > MOST_WEIGHT:
            yield f"a weight of {one_line(number, 12)}; allowed: at most {MOST_WEIGHT:g}"
    for signs in _SIGNS.findall(bare):
        if len(signs) > MOST_SIGNS:
            yield f"{len(signs)} signs after a word; allowed: at most {MOST_SIGNS}"


def _nesting(bare: str, opening: str = "(", closing: str = ")") -> int:
    depth = most = 0
    for sign in bare:
        depth = max(0, depth + (sign in opening) - (sign in closing))
        most = max(most, depth)
    return most


def from_a1111(text: str) -> str:
    """A prompt of AUTOMATIC1111's web UI in compel's syntax, with the same factors.

    `(x)` is 1.1, `[x]` is 1 / 1.1, `(x:1.3)` is 1.3, multiplied where they are nested. Raises ConfigError for
    what compel cannot say: editing (`[a:b:0.5]`, `[a|b]`), BREAK, `<lora:…>`, signs that would be weights.
    """
    bare = _ESCAPED.sub("_", text)
    if found := _LORA.search(bare):
        raise ConfigError(f"{found[0]}…> loads nothing in a prompt; give the file to arms.adapters")
    if re.search(r"\bBREAK\b", bare):
        raise ConfigError("BREAK is not supported; leave it out")
    if any(":" in square or "|" in square for square in _SQUARE.findall(bare)):
        raise ConfigError("prompt editing, as [a:b:0.5] or [a|b], is not supported")
    if _nesting(bare, "([", ")]") > MOST_NESTED_A1111:
        raise ConfigError(f"more than {MOST_NESTED_A1111} brackets in each other")
    written = ""
    for piece, weight in _weighed(text):
        if _NOT_SAID.search(piece):
            raise ConfigError(f"{one_line(piece, 30)!r} has signs that would be compel's weights or quotes")
        if written.endswith(tuple("0123456789")) and piece[:1] in set("0123456789.+-"):
            written += " "
        written += piece if weight == 1 else f"({piece}){weight:.4g}"
    return written


def _weighed(text: str) -> list[tuple[str, float]]:
    """Pieces of the text, brackets of the text itself escaped, and the product of the weights around each."""
    pieces: list[tuple[str, float]] = []
    opened: list[tuple[str, int]] = []  # which bracket, and the first piece in it
    for token in _TOKEN.finditer(text):
        sign = token[0]
        if sign in ("(", "["):
            opened.append((sign, len(pieces)))
        elif sign in (")", "]") and opened and opened[-1][0] == {")": "(", "]": "["}[sign]:
            bracket, first = opened.pop()
            factor = A1111_STEP if bracket == "(" else 1 / A1111_STEP
            pieces[first:] = [(piece, weight * factor) for piece, weight in pieces[first:]]
        elif token[1] is not None and opened and opened[-1][0] == "(":
            _, first = opened[-1]
            factor = float(token[1]) / A1111_STEP  # the bracket that follows multiplies it again
            pieces[first:] = [(piece, weight * factor) for piece, weight in pieces[first:]]
        else:
            pieces.append((f"\\{sign}" if sign in ("(", ")", "[", "]") else sign, 1.0))
    for bracket, first in opened:  # one that is not closed lasts to the end
        factor = A1111_STEP if bracket == "(" else 1 / A1111_STEP
        pieces[first:] = [(piece, weight * factor) for piece, weight in pieces[first:]]
    rounded = [(piece, round(weight, 4)) for piece, weight in pieces]
    joined: list[tuple[str, float]] = []
    for piece, weight in rounded:
        if joined and joined[-1][1] == weight:
            piece = joined.pop()[0] + piece
        joined.append((piece, weight))
    return joined
