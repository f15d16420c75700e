"""What a prompt says is what is drawn, or an error that shows how to write it."""

import contextlib
import time
from pathlib import Path
from typing import Any

import pytest

from harness.config.loading.prompt_syntax import fault_of, from_a1111, holds_word
from harness.errors import ConfigError
from tests.config.example import load


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("(blurry:1.3) cat", r"write 'a fox, \(blurry\)1.3 cat'"),
        ("[ugly]", r"write 'a fox, \(ugly\)0.9091'"),
        ("[a:b:0.5]", "prompt editing"),
        ("a BREAK b", "BREAK is AUTOMATIC1111's"),
        ("<lora:x:1> a", "loads nothing in a prompt"),
        ("()", "empty brackets"),
        ('("a", "b").and()', r"compel's .and\("),
        ('("a", "b").blend(1, 2)', r"compel's .blend\("),
        ("wrong.swap(ugly)", r"compel's .swap\("),
        ("withLora(x, 1)", r"compel's withLora\("),
        ("((((a))))1.1", "more than 3 brackets"),
        ("(solo)2girls", "write a space before 2g"),
        ("(a)99", "a weight of 99"),
        ("word" + "+" * 25, "25 signs"),
    ],
)
def test_what_would_be_drawn_as_other_than_it_looks(text: str, why: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=why) as caught:
        load(tmp_path, prompts=[{"text": f"a fox, {text}", "split": "dev"}])
    assert "x.yaml: prompts: " in str(caught.value) and len(str(caught.value)) < 300 + len(str(tmp_path))
    arms: list[Any] = [
        {"name": "placebo", "negative": text},
        {"name": "lora", "negative": "wrong", "adapters": [{}]},
    ]
    with pytest.raises(ConfigError, match=r"arms\.placebo\.negative: "):
        load(tmp_path, arms=arms)


@pytest.mark.parametrize(
    "text",
    [
        r"\[V\] dog",
        r"a \(x:1.3\)",
        "a c++ book, 18+",
        "a t-shirt (small), 16:9, a :)",
        "(low quality, blurry)1.2, (a (b)+ c)++",
        "cats AND dogs",
        "",
    ],
)
def test_what_is_said_as_it_looks(text: str) -> None:
    assert fault_of(text) is None


def test_square_brackets_are_letters_in_training(tmp_path: Path) -> None:
    training = load(tmp_path, training__prompt="[V] wrong").training
    assert training is not None and training.prompt == "[V] wrong"
    with pytest.raises(ConfigError, match=r"training\.prompt: .*write '\(wrong\)1.3'"):
        load(tmp_path, training__prompt="(wrong:1.3)")


@pytest.mark.parametrize(
    ("a1111", "compel"),
    [
        ("(blurry:1.3) cat", "(blurry)1.3 cat"),
        ("[ugly], ((bad)) hands", "(ugly)0.9091, (bad)1.21 hands"),
        ("(a (b:1.2) c:0.9)", "(a )0.9(b)1.08( c)0.9"),
        (r"\(x\) (y)", r"\(x\) (y)1.1"),
        ("(a:1.3)5", "(a)1.3 5"),
        ("((((((((((a))))))))))", "(a)2.594"),
        ("a, (b", "a, (b)1.1"),
        ("no weights: 16:9", "no weights: 16:9"),
    ],
)
def test_a1111_is_translated(a1111: str, compel: str) -> None:
    assert from_a1111(a1111) == compel
    assert fault_of(compel) is None


def test_a_sweep_in_a1111s_syntax(tmp_path: Path) -> None:
    arms: list[Any] = [
        {"name": "placebo", "negative": "(wrong:1.3), [ugly]"},
        {"name": "lora", "negative": "wrong", "adapters": [{}]},
    ]
    prompts = ["a (red:1.2) fox", {"text": "an owl", "split": "dev"}]
    sweep = load(tmp_path, prompt_syntax="a1111", arms=arms, prompts=prompts)
    assert [arm.negative for arm in sweep.arms] == ["(wrong)1.3, (ugly)0.9091", "wrong"]
    assert [prompt.text for prompt in sweep.prompts] == ["a (red)1.2 fox", "an owl"]
    with pytest.raises(ConfigError, match=r"prompts\[0\]: prompt editing"):
        load(tmp_path, prompt_syntax="a1111", prompts=["[a|b]"])


def test_the_time_is_bounded() -> None:
    began = time.monotonic()
    for text in ("(" * 20_000, "[" * 20_000, "(a:1" * 5_000, "(a" * 5_000 + ")" * 5_000, "(a)1" * 5_000):
        fault_of(text)
        with contextlib.suppress(ConfigError):
            from_a1111(text)
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    ("text", "found"),
    [("a wrong fox", True), ("Wrong++", True), ("(wrong)1.2", True), ("wrongly", False), ("2wrong", True)],
)
def test_a_word_is_no_part_of_a_word(text: str, found: bool) -> None:
    assert holds_word(text, "wrong") == found


@pytest.mark.parametrize(
    ("branch", "negative", "prompt", "fault"),
    [
        ("negative", "wrongly drawn", "a fox", "no negative prompt"),
        ("positive", "wrong", "a fox", "no positive prompt"),
        ("both", "wrong", "a fox", "no positive prompt"),
        ("both", "wrong", "a wrong fox", None),
        ("negative", "wrong", "a fox", None),
    ],
)
def test_an_adapter_finds_its_word(
    branch: str, negative: str, prompt: str, fault: str | None, tmp_path: Path
) -> None:
    changes: dict[str, Any] = {
        "adapter": {"kind": "textual_inversion"},
        "axes": {},
        "arms": [{"name": "placebo"}, {"name": "ti", "negative": negative, "adapters": [{"branch": branch}]}],
        "prompts": [{"text": prompt, "split": "dev"}],
    }
    if fault is None:
        load(tmp_path, **changes)
    else:
        with pytest.raises(ConfigError, match=rf"arms\.ti\.adapters\[0\]: .*'wrong'.*{fault}"):
            load(tmp_path, **changes)
