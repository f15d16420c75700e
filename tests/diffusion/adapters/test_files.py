"""Adapters' files: stock diffusers draws the harness's image from them, and what cannot act says so."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from harness.config.schema.adapter import (
    AdapterConfig,
    LowRankAdapter,
    OftAdapter,
    ProductAdapter,
    TextualInversion,
)
from harness.config.weights.layout import EMBEDDING_FILE, LORA_FILE, PEFT_CONFIG, PEFT_FILE, adapter_path
from harness.diffusion.adapters.adapter import Adapter, LowRankLayer
from harness.diffusion.adapters.files import read_adapter
from harness.diffusion.adapters.kohya import to_kohya
from harness.diffusion.models.model import Model, Row, RowAdapter, SamplerSettings
from harness.errors import ModelError
from tests.diffusion.adapters.adapters import products, random_adapter
from tests.diffusion.models.test_sdxl import mean_difference, seeded, stock

BASE_ALONE = SamplerSettings(steps=6, refiner_start=None)
FOX = Row(prompt="a red fox", negative="wrong", seed=3, guidance=5.0)
EVERYWHERE = ("attention", "convolutions", "feed_forward")
KINDS: dict[str, AdapterConfig] = {
    "rank": LowRankAdapter(rank=4, alpha="rank"),
    "sqrt_rank": LowRankAdapter(rank=4, alpha="sqrt_rank"),
    "one": LowRankAdapter(rank=4, alpha=1.0),
    "rslora": LowRankAdapter(kind="rslora", rank=4, alpha=3.0),
    "dora": LowRankAdapter(kind="dora", rank=4, alpha=8.0),
    "blocks": LowRankAdapter(rank=4, targets=EVERYWHERE, blocks=("mid_block", "up_blocks.0.attentions.1")),
    "text": LowRankAdapter(rank=4, alpha=8.0, text_encoders=True),
    "text_dora": LowRankAdapter(kind="dora", rank=4, alpha=8.0, text_encoders=True),
    "all_rslora": LowRankAdapter(kind="rslora", rank=2, alpha=2.0, targets=EVERYWHERE, text_encoders=True),
    "all_dora": LowRankAdapter(kind="dora", rank=2, targets=EVERYWHERE, text_encoders=True),
}


PEFTS: dict[str, AdapterConfig] = {
    "loha": ProductAdapter(kind="loha", rank=2, alpha=4.0, targets=EVERYWHERE),
    "lokr": ProductAdapter(kind="lokr", rank=2, alpha=4.0, factor=4, targets=EVERYWHERE),
    "lokr_whole": ProductAdapter(kind="lokr", rank=64, alpha=32.0, blocks=("mid_block",)),
    "oft": OftAdapter(kind="oft", block_size=4, targets=("attention", "feed_forward", "projections")),
}


def read(path: Path) -> Adapter:
    return read_adapter(path, device=torch.device("cpu"), dtype=torch.float32)


@pytest.fixture(scope="module")
def one(tiny_model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_adapter(tiny_model, tmp_path_factory.mktemp("one"), seed=1)


@pytest.fixture(scope="module")
def words(tiny_model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    adapter = TextualInversion(vectors=2)
    return random_adapter(tiny_model, tmp_path_factory.mktemp("words"), seed=1, adapter=adapter)


@pytest.mark.parametrize("kind", KINDS)
def test_a_stock_pipeline_with_the_file_draws_the_harness_image(
    tiny_model: Model, tiny_folder: Path, tmp_path: Path, kind: str
):
    """At two steps: with more, random weights with a DoRA everywhere amplify what rounds differently."""
    random_adapter(tiny_model, tmp_path, seed=1, adapter=KINDS[kind])
    pipeline = stock(tiny_folder)
    pipeline.load_lora_weights(tmp_path)
    expected = pipeline(
        FOX.prompt,
        negative_prompt=FOX.negative,
        num_inference_steps=2,
        guidance_scale=5.0,
        generator=seeded(3),
    ).images[0]
    row = replace(FOX, adapters=(RowAdapter(path=tmp_path, scale=1.0, branch="both"),))
    drawn, plain = (image.image for image in tiny_model.generate([row, FOX], replace(BASE_ALONE, steps=2)))
    effect = mean_difference(expected, plain)
    assert effect > 0.5
    assert mean_difference(drawn, expected) <= 0.03 * effect  # norms are summed in another order than PEFT


@pytest.mark.parametrize("kind", PEFTS)
def test_peft_loads_the_folder_and_a_stock_pipeline_draws_the_harness_image(
    tiny_model: Model, tiny_folder: Path, tmp_path: Path, kind: str
):
    for name in ("one", "two"):
        random_adapter(tiny_model, tmp_path / name, seed=1, adapter=PEFTS[kind])
    for file in (PEFT_FILE, PEFT_CONFIG):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    pipeline = stock(tiny_folder)
    pipeline.unet = PeftModel.from_pretrained(pipeline.unet, tmp_path / "one").merge_and_unload()
    expected = pipeline(
        FOX.prompt,
        negative_prompt=FOX.negative,
        num_inference_steps=2,
        guidance_scale=5.0,
        generator=seeded(3),
    ).images[0]
    few = replace(BASE_ALONE, steps=2)
    row = replace(FOX, adapters=(RowAdapter(path=tmp_path / "one", scale=1.0, branch="both"),))
    beside = replace(FOX, seed=4)  # rows on which nothing acts, in one batch with it
    drawn, plain = (image.image for image in tiny_model.generate([row, FOX, beside], few)[:2])
    effect = mean_difference(drawn, plain)
    assert effect > 0.5
    assert mean_difference(drawn, expected) <= 0.03 * effect
    [alone] = tiny_model.generate([FOX], few)
    assert mean_difference(plain, alone.image) <= 0.03 * effect


@pytest.mark.parametrize("kind", ["loha", "lokr", "lokr_whole"])
def test_lycoris_layout_reads_as_pefts(tiny_model: Model, tmp_path: Path, kind: str):
    adapter = PEFTS[kind]
    assert isinstance(adapter, ProductAdapter)
    folder = random_adapter(tiny_model, tmp_path / "peft", seed=1, adapter=adapter)
    state = {key.replace("base_model.model.", "unet."): t for key, t in load_file(folder / PEFT_FILE).items()}
    save_file(
        to_kohya(state, alpha=adapter.scale * adapter.rank, blocks="diffusers"), tmp_path / "k.safetensors"
    )
    ours, theirs = read(folder).unet, read(tmp_path / "k.safetensors").unet
    assert ours.keys() == theirs.keys() != set()
    for name, layer in ours.items():
        other = theirs[name]
        assert isinstance(layer, LowRankLayer) and isinstance(other, LowRankLayer)
        torch.testing.assert_close(layer.down, other.down)
        if kind == "loha":  # of two whole factors no reader knows the rank: export folds the scale in
            assert layer.scale == pytest.approx(other.scale)


def test_the_file_says_what_it_is(tiny_model: Model, tmp_path: Path):
    adapter = LowRankAdapter(kind="rslora", rank=4, alpha=8.0, text_encoders=True)
    random_adapter(tiny_model, tmp_path / "one", seed=1, adapter=adapter)
    random_adapter(tiny_model, tmp_path / "two", seed=1, adapter=adapter)
    data = (tmp_path / "one" / LORA_FILE).read_bytes()
    assert data == (tmp_path / "two" / LORA_FILE).read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    with safe_open(tmp_path / "one" / LORA_FILE, framework="pt") as file:
        assert file.metadata() == header
    assert header["made_by"] == "test" and header["format"] == "pt"
    assert list(header) == sorted(header)  # the library's own order changes from process to process
    config = json.loads(header["lora_adapter_metadata"])
    for part in ("unet", "text_encoder", "text_encoder_2"):
        assert config[f"{part}.lora_alpha"] == 8.0 and config[f"{part}.r"] == 4
        assert config[f"{part}.use_rslora"] and f"{part}.use_dora" not in config


def test_an_embeddings_file_says_what_it_is(words: Path):
    with safe_open(words / EMBEDDING_FILE, framework="pt") as file:
        assert file.metadata() == {"format": "pt", "made_by": "test", "word": "wrong", "vectors": "2"}
        shapes = {key: tuple(file.get_tensor(key).shape) for key in file.keys()}  # noqa: SIM118
    assert shapes == {"clip_l": (2, 16), "clip_l_start": (2, 16), "clip_g": (2, 24), "clip_g_start": (2, 24)}
    embedding = read(words).embedding
    assert embedding is not None and embedding.word == "wrong" and embedding.vectors == 2


@pytest.mark.parametrize("kind", ["sqrt_rank", "all_rslora", "all_dora"])
def test_kohyas_layout_reads_as_diffusers_own(tiny_model: Model, tmp_path: Path, kind: str):
    adapter = KINDS[kind]
    assert isinstance(adapter, LowRankAdapter)
    folder = random_adapter(tiny_model, tmp_path / "diffusers", seed=1, adapter=adapter)
    kohya = to_kohya(load_file(folder / LORA_FILE), alpha=adapter.scale * adapter.rank, blocks="diffusers")
    save_file(kohya, tmp_path / "kohya.safetensors")
    ours, theirs = read(folder), read(tmp_path / "kohya.safetensors")
    for part in ("unet", "text_encoder", "text_encoder_2"):
        mine, other = getattr(ours, part), getattr(theirs, part)
        assert mine.keys() == other.keys()
        for name, layer in mine.items():
            assert layer.scale == pytest.approx(other[name].scale)
            torch.testing.assert_close(layer.down, other[name].down)
            torch.testing.assert_close(layer.up, other[name].up)
            assert (layer.magnitude_O is None) == (other[name].magnitude_O is None)
            if layer.magnitude_O is not None:
                torch.testing.assert_close(layer.magnitude_O, other[name].magnitude_O)


def test_a_file_can_lie_anywhere(one: Path, tmp_path: Path):
    save_file(load_file(one / LORA_FILE), tmp_path / "mine.safetensors")
    adapter = read(tmp_path / "mine.safetensors")
    assert {layer.scale for layer in products(read(one).unet).values()} == {8.0 / 4}
    assert {layer.scale for layer in products(adapter.unet).values()} == {
        1.0
    }  # no alpha is recorded: it is the rank
    assert not adapter.acts_on_text


def test_a_foreign_embedding_is_named_after_its_file(tmp_path: Path):
    path = tmp_path / "Ugly.safetensors"
    save_file({"clip_l": torch.ones(3, 16), "clip_g": torch.ones(3, 24)}, path)
    embedding = read(path).embedding
    assert embedding is not None and embedding.word == "ugly" and embedding.vectors == 3
    assert torch.equal(embedding.at(1.0)[1], torch.ones(3, 24))
    with pytest.raises(ModelError, match=r"scale 1 alone, not 0.5"):
        embedding.at(0.5)


class TestFilesThatCannotAct:
    def test_missing(self, tmp_path: Path):
        with pytest.raises(ModelError, match=r"neither pytorch_lora_weights.*nor learned_embeds"):
            read(tmp_path)
        with pytest.raises(ModelError, match=r"none.safetensors cannot be read"):
            read(tmp_path / "none.safetensors")

    def test_damaged(self, tmp_path: Path):
        (tmp_path / LORA_FILE).write_bytes(b"cut")
        with pytest.raises(ModelError, match="cannot be read"):
            read(tmp_path)

    @pytest.mark.parametrize(
        "key", ["vae.to_q.lora_A.weight", "unet.mid.to_q.lokr_w1", "unet.mid.to_q.lora.down.weight", "hello"]
    )
    def test_of_another_kind(self, one: Path, tmp_path: Path, key: str):
        save_file({**load_file(one / LORA_FILE), key: torch.zeros(2, 2)}, tmp_path / LORA_FILE)
        with pytest.raises(ModelError, match=f"{re.escape(key)} is (of no|no tensor)"):
            read(tmp_path)

    def test_half_a_layer(self, one: Path, tmp_path: Path):
        weights = load_file(one / LORA_FILE)
        del weights[next(key for key in weights if "lora_B" in key)]
        save_file(weights, tmp_path / LORA_FILE)
        with pytest.raises(ModelError, match="lora_A and lora_B"):
            read(tmp_path)

    def test_half_an_embedding(self, words: Path, tmp_path: Path):
        for absent in ("clip_l", "clip_g"):
            tensors = load_file(words / EMBEDDING_FILE)
            del tensors[absent]
            save_file(tensors, tmp_path / EMBEDDING_FILE)
            with pytest.raises(ModelError, match="as many vectors in clip_l as in clip_g"):
                read(tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_adapter_with_nan_is_not_read(one: Path, tmp_path: Path, value: float):
    state = load_file(adapter_path(one))
    key = next(key for key in state if "lora_B" in key)
    state[key][0] = value
    for write, name in ((save_file, "nan.safetensors"), (torch.save, "nan.bin")):
        write(state, tmp_path / name)
        with pytest.raises(ModelError, match=f"{name} has NaN or infinity in {key}"):
            read_adapter(tmp_path / name, device=torch.device("cpu"), dtype=torch.float16)
