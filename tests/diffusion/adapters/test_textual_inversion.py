"""Textual inversion against stock diffusers, which puts new tokens into tokenizers and tables."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from harness.config.schema.adapter import TextualInversion
from harness.config.weights.layout import EMBEDDING_FILE
from harness.diffusion.adapters.adapter import Embedding
from harness.diffusion.adapters.files import read_adapter
from harness.diffusion.adapters.textual_inversion import (
    stand_in,
    standing_in,
    start_vectors,
    table,
    written_out,
)
from harness.diffusion.models.model import Fresh, Model, Row, RowAdapter, SamplerSettings
from harness.diffusion.models.text_encoding import PromptEncoder
from harness.errors import ModelError
from tests.diffusion.adapters.adapters import random_adapter
from tests.diffusion.models.test_sdxl import difference, seeded, stock

BASE_ALONE = SamplerSettings(steps=6, refiner_start=None)
ROW = Row(prompt="a red fox", negative="a wrong image, wrong", seed=3, guidance=5.0)
VECTORS = 3


@pytest.fixture(scope="module")
def learnt(tiny_model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    adapter = TextualInversion(vectors=VECTORS)
    return random_adapter(tiny_model, tmp_path_factory.mktemp("learnt"), seed=1, adapter=adapter)


@pytest.fixture(scope="module")
def embedding(learnt: Path) -> Embedding:
    found = read_adapter(learnt, device=torch.device("cpu"), dtype=torch.float32).embedding
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a wrong fox", "a wrong wrong wrong fox"),
        ("Wrong, wrong", "wrong wrong wrong, wrong wrong wrong"),
        ("wronged, wrongs, unwrong", "wronged, wrongs, unwrong"),
        (
            "wrong2 wrong_fox",
            "wrong wrong wrong2 wrong wrong wrong_fox",
        ),  # CLIP splits words at all but letters
        ("wrong-headed", "wrong wrong wrong-headed"),
        ("(wrong)1.5 fox", "(wrong wrong wrong)1.5 fox"),
        ("wrong++ fox", "(wrong wrong wrong)++ fox"),
        ("wrong-, fox", "(wrong wrong wrong)-, fox"),
        ("(a wrong+ fox)++", "(a (wrong wrong wrong)+ fox)++"),
        ("", ""),
    ],
)
def test_the_word_is_written_out(text: str, expected: str):
    assert written_out(text, "wrong", VECTORS, written="wrong") == expected
    assert written_out(text, "wrong", VECTORS, written="q") == re.sub(
        r"(?<![a-z])wrong(?![a-z])", "q", expected
    )


def test_one_vector_changes_no_text():
    text = "wrong++ wrong (wrong)1.2"
    assert written_out(text, "wrong", 1, written="wrong") == text


def test_stock_textual_inversion_draws_the_same_image(tiny_model: Model, tiny_folder: Path, learnt: Path):
    pipeline, tensors = stock(tiny_folder), load_file(learnt / EMBEDDING_FILE)
    for key, tokenizer, encoder in (
        ("clip_l", pipeline.tokenizer, pipeline.text_encoder),
        ("clip_g", pipeline.tokenizer_2, pipeline.text_encoder_2),
    ):
        pipeline.load_textual_inversion(
            tensors[key], token="<bad>", tokenizer=tokenizer, text_encoder=encoder
        )
    expected = pipeline(
        ROW.prompt,
        negative_prompt=ROW.negative.replace("wrong", "<bad>"),
        num_inference_steps=6,
        guidance_scale=5.0,
        generator=seeded(3),
    ).images[0]
    row = replace(ROW, adapters=(RowAdapter(path=learnt, scale=1.0, branch="negative"),))
    drawn, plain = (image.image for image in tiny_model.generate([row, ROW], BASE_ALONE))
    assert difference(drawn, expected) <= 2
    assert difference(drawn, plain) > 10


def test_it_acts_on_its_own_branch_alone(tiny_model: Model, learnt: Path):
    both, positive = (
        replace(ROW, adapters=(RowAdapter(path=learnt, scale=1.0, branch=branch),))
        for branch in ("both", "positive")
    )
    drawn, plain, untouched = (p.image for p in tiny_model.generate([both, ROW, positive], BASE_ALONE))
    assert difference(drawn, plain) > 10
    assert difference(untouched, plain) == 0  # the positive prompt has not the word


def test_each_occurrence_has_its_vector(tiny_folder: Path, embedding: Embedding):
    pipeline = stock(tiny_folder)
    words = table(pipeline.text_encoder)
    (token,) = pipeline.tokenizer("wrong", add_special_tokens=False).input_ids
    ids = torch.tensor([[5, token, token, token, token, 7], [token, 5, 5, 5, 5, token]])
    before = words.weight.clone()
    with torch.no_grad():
        plain = words(ids)
        with standing_in(pipeline, "wrong", embedding.learnt_ND):
            drawn = words(ids)
        assert torch.equal(words(ids), plain) and torch.equal(words.weight, before)
    v = embedding.learnt_ND[0]
    assert torch.equal(drawn[0], torch.stack([plain[0, 0], v[0], v[1], v[2], v[0], plain[0, 5]]))
    assert torch.equal(drawn[1, [0, 5]], v[:2]) and torch.equal(drawn[1, 1:5], plain[1, 1:5])


def test_scale_walks_from_the_start_to_what_was_learnt(embedding: Embedding):
    assert embedding.start_ND is not None
    for start, learnt, at_none, at_half, at_twice in zip(
        embedding.start_ND,
        embedding.learnt_ND,
        embedding.at(0.0),
        embedding.at(0.5),
        embedding.at(2.0),
        strict=True,
    ):
        torch.testing.assert_close(at_none, start)
        torch.testing.assert_close(at_half, (start + learnt) / 2)
        torch.testing.assert_close(at_twice, 2 * learnt - start)


def test_at_its_start_it_is_the_word_written_out(tiny_folder: Path, embedding: Embedding):
    pipeline = stock(tiny_folder)
    assert embedding.start_ND is not None
    encoder = PromptEncoder(pipeline, acts=False)
    expected = encoder.positive("a wrong wrong wrong fox")
    with standing_in(pipeline, "wrong", embedding.start_ND), torch.no_grad():
        drawn = encoder.differentiable("a wrong wrong wrong fox")
    torch.testing.assert_close(drawn.embeds_1TD, expected.embeds_1TD)


@pytest.mark.parametrize("word", ["wronged", "xyz"])
def test_a_word_of_several_tokens_is_learnt_and_drawn(
    tiny_model: Model, tiny_folder: Path, tmp_path: Path, word: str
):
    pipeline = stock(tiny_folder)
    assert len(pipeline.tokenizer(word, add_special_tokens=False).input_ids) > 1
    assert stand_in(pipeline, word) in "qxzjkv"
    folder = random_adapter(tiny_model, tmp_path, seed=1, adapter=TextualInversion(word=word, vectors=2))
    row = replace(ROW, negative=f"a {word} image", adapters=())
    adapters = (RowAdapter(path=folder, scale=1.0, branch="negative"),)
    drawn, plain = (p.image for p in tiny_model.generate([replace(row, adapters=adapters), row], BASE_ALONE))
    assert difference(drawn, plain) > 10


def test_a_word_of_several_tokens_starts_from_their_mean(tiny_folder: Path):
    pipeline = stock(tiny_folder)
    tokens = pipeline.tokenizer("xyz", add_special_tokens=False).input_ids
    expected = table(pipeline.text_encoder).weight[tokens].mean(dim=0)
    torch.testing.assert_close(start_vectors(pipeline, "xyz", 2)[0], expected.expand(2, -1))


class TestWhatCannotAct:
    def test_a_word_that_the_tokenizer_does_not_know(self, tiny_model: Model):
        with pytest.raises(ModelError, match="'ж' is not a word to the model's tokenizer"):
            tiny_model.attach([Fresh(adapter=TextualInversion(word="ж"), seed=0)]).__enter__()

    def test_a_prompt_with_the_stand_in_of_a_word(self):
        with pytest.raises(ModelError, match="has the word 'q', which is written for 'wronged'"):
            written_out("a wronged fox, q", "wronged", 2, written="q")
        assert written_out("a wronged squid", "wronged", 2, written="q") == "a q q squid"

    def test_vectors_of_another_model(self, tiny_folder: Path):
        vectors = (torch.ones(1, 16), torch.ones(1, 1280))
        pipeline = stock(tiny_folder)
        with pytest.raises(ModelError, match=r"width 1280.*text_encoder_2 takes 24"):
            standing_in(pipeline, "wrong", vectors).__enter__()
        assert not table(pipeline.text_encoder)._forward_hooks

    def test_a_prompt_too_long_once_it_is_written_out(self, tiny_folder: Path, learnt: Path):
        adapter = read_adapter(learnt, device=torch.device("cpu"), dtype=torch.float32)
        encoder = PromptEncoder(stock(tiny_folder), acts=True)
        text = " ".join(["wrong"] * 30)
        encoder.positive(text)
        with pytest.raises(ModelError, match="longer than the 77 tokens"):
            encoder.positive(text, [(adapter, 1.0)])
