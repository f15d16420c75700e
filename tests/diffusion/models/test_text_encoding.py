"""Prompts under adapters against stock PEFT, and what is encoded once."""

from pathlib import Path
from typing import Any

import pytest
import torch
from compel import CompelForSDXL
from diffusers import StableDiffusionXLImg2ImgPipeline

from harness.config.schema.adapter import LowRankAdapter, TextualInversion
from harness.diffusion.adapters.adapter import Adapter, Verbatim
from harness.diffusion.adapters.files import read_adapter
from harness.diffusion.models.model import Model
from harness.diffusion.models.text_encoding import PromptEncoder
from harness.errors import ModelError
from tests.diffusion.adapters.adapters import random_adapter
from tests.diffusion.models.test_sdxl import stock
from tests.diffusion.tiny import refiner_folder

PROMPTS = ["a red fox", "a (red)++ fox, wrong-", ""]


def read(path: Path) -> Adapter:
    return read_adapter(path, device=torch.device("cpu"), dtype=torch.float32)


@pytest.fixture(scope="module")
def text_folder(tiny_model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    adapter = LowRankAdapter(rank=4, alpha=8.0, text_encoders=True)
    return random_adapter(tiny_model, tmp_path_factory.mktemp("text"), seed=1, adapter=adapter)


@pytest.fixture(scope="module")
def word(tiny_model: Model, tmp_path_factory: pytest.TempPathFactory) -> Adapter:
    adapter = TextualInversion(vectors=2)
    return read(random_adapter(tiny_model, tmp_path_factory.mktemp("word"), seed=1, adapter=adapter))


@pytest.fixture
def pipeline(tiny_folder: Path) -> Any:
    return stock(tiny_folder)


def calls_of(encoder: torch.nn.Module) -> list[int]:
    calls: list[int] = []
    encoder.register_forward_hook(lambda *_: calls.append(1))
    return calls


@pytest.mark.parametrize("text", PROMPTS)
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_text_encoders_are_those_of_a_stock_pipeline(
    tiny_folder: Path, pipeline: Any, text_folder: Path, text: str, scale: float
):
    stocked = stock(tiny_folder)
    stocked.load_lora_weights(text_folder, adapter_name="one")
    stocked.set_adapters(["one"], [scale])
    expected = PromptEncoder(stocked, acts=False).positive(text)
    encoder = PromptEncoder(pipeline, acts=True)
    plain = encoder.positive(text)
    encoded = encoder.positive(text, [(read(text_folder), scale)])
    torch.testing.assert_close(encoded.embeds_1TD, expected.embeds_1TD, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(encoded.pooled_1P, expected.pooled_1P, rtol=1e-4, atol=1e-4)
    assert (encoded.embeds_1TD - plain.embeds_1TD).abs().max() > 0.01
    again = PromptEncoder(pipeline, acts=True).positive(text)
    assert torch.equal(again.embeds_1TD, plain.embeds_1TD)  # nothing of the adapter is left


def test_weights_are_compels(pipeline: Any):
    encoder, compel = PromptEncoder(pipeline, acts=True), CompelForSDXL(pipeline)
    for text in ("a (red)++ fox, wrong-", "(a fox)1.5 and (a cat)0.5"):
        encoded, expected = encoder.positive(text), compel(text)
        assert torch.equal(encoded.embeds_1TD, expected.embeds)
        assert torch.equal(encoded.pooled_1P, expected.pooled_embeds)


def test_each_text_is_encoded_once_under_the_same_adapters(pipeline: Any, text_folder: Path, word: Adapter):
    calls = calls_of(pipeline.text_encoder)
    encoder = PromptEncoder(pipeline, acts=True)
    adapter = read(text_folder)
    different: list[list[tuple[Adapter, float]]] = [
        [],
        [(adapter, 1.0)],
        [(adapter, 0.5)],
        [(word, 1.0)],
        [(adapter, 1.0), (word, 1.0)],
    ]
    encoded = [encoder.positive("a wrong fox", adapters) for adapters in different]
    assert len(calls) == len(different)
    for adapters, first in zip(different, encoded, strict=True):
        assert encoder.positive("a wrong fox", adapters) is first
        assert encoder.negative("a wrong fox", adapters) is first
    assert len(calls) == len(different)
    for one in range(len(encoded)):
        for other in range(one):
            assert not torch.equal(encoded[one].embeds_1TD, encoded[other].embeds_1TD)


def test_what_does_not_act_on_words_shares_the_plain_encoding(
    tiny_model: Model, pipeline: Any, word: Adapter, tmp_path: Path
):
    encoder = PromptEncoder(pipeline, acts=True)
    plain = encoder.positive("a wrong fox")
    of_the_unet = read(random_adapter(tiny_model, tmp_path, seed=1))
    assert encoder.positive("a wrong fox", [(of_the_unet, 1.0), (word, 0.0)]) is plain


def test_a_refiner_ignores_adapters(tiny_folder: Path, text_folder: Path, word: Adapter):
    base = stock(tiny_folder)
    refiner = StableDiffusionXLImg2ImgPipeline.from_pretrained(
        refiner_folder(tiny_folder), text_encoder_2=base.text_encoder_2, tokenizer_2=base.tokenizer_2
    )
    encoder = PromptEncoder(refiner, acts=False)
    plain = encoder.positive("a (wrong)++ fox")
    assert encoder.positive("a (wrong)++ fox", [(read(text_folder), 1.0), (word, 1.0)]) is plain
    assert plain.embeds_1TD.shape == (1, 77, 24)


def test_the_empty_negative_is_zeros_where_the_configuration_says_so(pipeline: Any, text_folder: Path):
    encoder = PromptEncoder(pipeline, acts=True)
    assert encoder.negative("").embeds_1TD.abs().max() > 0
    pipeline.register_to_config(force_zeros_for_empty_prompt=True)
    for encoded in (
        encoder.negative(""),
        encoder.negative("", [(read(text_folder), 1.0)]),
        encoder.differentiable(""),
    ):
        assert encoded.embeds_1TD.abs().max() == 0 and encoded.pooled_1P.abs().max() == 0
    assert encoder.positive("").embeds_1TD.abs().max() > 0
    assert encoder.negative("wrong").embeds_1TD.abs().max() > 0


@pytest.mark.parametrize("text", ["a wrong fox", "a (wrong)++ fox", "(wrong)0.5"])
def test_gradients_reach_the_encoders(pipeline: Any, text: str):
    encoder = PromptEncoder(pipeline, acts=True)
    fixed = encoder.positive(text)
    assert not fixed.embeds_1TD.requires_grad
    encoded = encoder.differentiable(text)
    assert torch.equal(encoded.embeds_1TD.detach(), fixed.embeds_1TD)
    (encoded.embeds_1TD.square().sum() + encoded.pooled_1P.square().sum()).backward()
    for part in (pipeline.text_encoder, pipeline.text_encoder_2):
        gradient = part.get_input_embeddings().weight.grad
        assert gradient is not None and gradient.abs().max() > 0


def test_two_embeddings_of_one_word_are_refused(pipeline: Any, word: Adapter):
    encoder = PromptEncoder(pipeline, acts=True)
    with pytest.raises(ModelError, match=r"several embeddings.*'wrong'"):
        encoder.positive("a wrong fox", [(word, 1.0), (word, 0.5)])


@pytest.mark.parametrize("text", ["c++ book", "18+ +_+", "(solo)2girls", "a (red)1.3 fox", r"\(a\)", "[x]"])
def test_a_caption_is_read_letter_for_letter(pipeline: Any, text: str):
    encoder = PromptEncoder(pipeline, acts=True)
    expected, *_ = pipeline.encode_prompt(text, device="cpu", do_classifier_free_guidance=False)
    assert torch.equal(encoder.positive(Verbatim(text)).embeds_1TD, expected)
    assert torch.equal(encoder.differentiable(Verbatim(text)).embeds_1TD, expected)
    if "++" in text:  # and is another text in every cache
        assert not torch.equal(encoder.positive(text).embeds_1TD, expected)


@pytest.mark.parametrize("text", ["()", '("a", "b").and()', "wrong.swap(ugly)", "((((a))))1.1"])
def test_what_is_no_weight_is_an_error(pipeline: Any, text: str):
    with pytest.raises(ModelError, match=r"prompt .*(empty brackets|is not supported|more than 3)"):
        PromptEncoder(pipeline, acts=True).positive(text)


def test_square_brackets_can_be_escaped(pipeline: Any):
    encoder = PromptEncoder(pipeline, acts=True)
    for written, meant in ((r"\[V\] dog", "[V] dog"), (r"\[V\] (dog)++", "[V] (dog)++")):
        assert torch.equal(encoder.positive(written).embeds_1TD, encoder.positive(meant).embeds_1TD)
