"""What a sweep names is opened when it is read: adapters, held against the model, and captions."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from harness.config.loading.check_named_files import about_adapters
from harness.errors import ConfigError
from tests.config.example import load

TO_Q = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
TO_K = "up_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"


def lora(path: Path, width: int = 1280, text: int = 2048, **more: Any) -> Path:
    """A LoRA on two layers of a UNet of these widths."""
    tensors = {
        f"unet.{TO_Q}.lora_A.weight": np.ones((2, width), np.float32),
        f"unet.{TO_Q}.lora_B.weight": np.ones((width, 2), np.float32),
        f"unet.{TO_K}.lora_A.weight": np.ones((2, text), np.float32),
        f"unet.{TO_K}.lora_B.weight": np.ones((width, 2), np.float32),
        **more,
    }
    save_file(tensors, path)
    return path


def with_file(name: str, **more: Any) -> list[dict[str, Any]]:
    return [
        {"name": "placebo", "negative": "wrong"},
        {"name": "foreign", "negative": "wrong", "adapters": [{"file": name, **more}]},
        {"name": "wrong_lora", "negative": "wrong", "adapters": [{"scale": 1.0}]},
    ]


def refused(tmp_path: Path, **changes: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, **changes)
    text = str(caught.value)
    assert "\n" not in text and len(text) - len(str(tmp_path)) < 300, text
    return text


def test_a_lora_of_sdxl_is_taken_and_what_is_left_out_is_said(tmp_path: Path) -> None:
    lora(tmp_path / "mine.safetensors", **{"bundle_emb.x.clip_l": np.ones((1, 768), np.float32)})
    sweep = load(tmp_path, arms=with_file("mine.safetensors"))
    assert about_adapters(sweep.arms) == [
        "mine.safetensors: layers: unet 2; left out: 1 × bundle_emb.x.clip_l (embeddings bundled with the "
        "LoRA: give them as a file of their own)"
    ]


def test_a_folder_that_an_adapter_was_saved_in(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    lora(tmp_path / "out" / "pytorch_lora_weights.safetensors")
    [adapter] = load(tmp_path, arms=with_file("out")).arms[1].adapters
    assert adapter.file == tmp_path / "out" / "pytorch_lora_weights.safetensors"
    (tmp_path / "empty").mkdir()
    assert "give the file itself" in refused(tmp_path, arms=with_file("empty"))


def test_settings_of_pefts_folder_are_part_of_it(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    lora(tmp_path / "out" / "adapter_model.safetensors")
    digests = set()
    for alpha in (1, 2):
        (tmp_path / "out" / "adapter_config.json").write_text(f'{{"r": 2, "lora_alpha": {alpha}}}')
        [adapter] = load(tmp_path, arms=with_file("out")).arms[1].adapters
        digests.add(adapter.digest)
    assert len(digests) == 2


@pytest.mark.parametrize("sizes", [{"text": 768}, {"width": 640}], ids=["sd15", "narrow"])
def test_a_lora_of_another_model(tmp_path: Path, sizes: dict[str, int]) -> None:
    lora(tmp_path / "sd15.safetensors", **sizes)
    text = refused(tmp_path, arms=with_file("sd15.safetensors"))
    assert "arms.foreign.adapters[0].file: sd15.safetensors is of another model" in text


def test_against_the_embedded_model(tmp_path: Path) -> None:
    lora(tmp_path / "sdxl.safetensors")
    text = refused(tmp_path, arms=with_file("sdxl.safetensors"), model={"kind": "emoji"})
    assert "sdxl.safetensors" in text and "another model" in text


def test_what_is_no_adapter(tmp_path: Path) -> None:
    save_file({"hello": np.ones(2, np.float32)}, tmp_path / "x.safetensors")
    assert "hello is no tensor of a LoRA" in refused(tmp_path, arms=with_file("x.safetensors"))
    (tmp_path / "y.safetensors").write_bytes(b"cut")
    assert "y.safetensors cannot be read" in refused(tmp_path, arms=with_file("y.safetensors"))


def test_an_embedding_of_another_model_or_without_its_start(tmp_path: Path) -> None:
    def embedding(name: str, first: int) -> None:
        vectors = {"clip_l": np.ones((1, first), np.float32), "clip_g": np.ones((1, 1280), np.float32)}
        save_file(vectors, tmp_path / name)

    embedding("wrong.safetensors", 768)
    text = refused(tmp_path, arms=with_file("wrong.safetensors", scale=0.5))
    assert "scale 1 alone, not 0.5" in text


TRAINED: dict[str, Any] = {"model": {"kind": "emoji"}, "recipe": {"kind": "folder", "path": "mine"}}


class TestCaptions:
    def folder(self, tmp_path: Path, *captions: str) -> None:
        (tmp_path / "mine").mkdir()
        for number, caption in enumerate(captions):
            Image.new("RGB", (64, 64), (number, 0, 0)).save(tmp_path / "mine" / f"{number}.png")
            (tmp_path / "mine" / f"{number}.txt").write_text(caption)

    def test_one_that_would_be_cut_is_named(self, tmp_path: Path) -> None:
        self.folder(tmp_path, "a cat", "a cat on grass " * 30, "a dog " * 40)
        text = refused(tmp_path, **TRAINED, training={"prompt": "wrong {caption}"})
        assert "training.prompt: with the caption of 1.png it has" in text and "so do 1 others" in text

    def test_they_are_looked_at_only_where_they_are_used(self, tmp_path: Path) -> None:
        self.folder(tmp_path, "a cat on grass " * 30)
        load(tmp_path, **TRAINED, training={"prompt": "wrong"})
