"""PickScore and HPS: the loading code and the arithmetic, against transformers and open_clip themselves.

Their published weights (4 and 2 GB) are not at hand. Small models of the same build with random weights are
saved in the published layouts; the names and shapes of the full architecture are compared without numbers.
"""

import json
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

from harness.config.schema.metric import PreferenceMetric
from harness.errors import ModelError
from harness.metrics import build_metrics, fine_tuned
from harness.metrics.fine_tuned import FineTuned, from_transformers
from harness.metrics.metric import Batch

# `ViT-H-14` in small: the same kinds of layers, the same tokenizer.
SMALL = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 8, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 4, "layers": 2},
}
PROMPTS = ["a newspaper with a headline", "two hands, close-up"]


@pytest.fixture(scope="module")
def architecture(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("open_clip") / "harness-small-H.json"
    path.write_text(json.dumps(SMALL))
    open_clip.add_model_config(path)
    return path.stem


@pytest.fixture(autouse=True)
def small(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind, about in list(fine_tuned.FINE_TUNED.items()):
        smaller = FineTuned(architecture=architecture, resize=about.resize)
        monkeypatch.setitem(fine_tuned.FINE_TUNED, kind, smaller)


def images(*, width: int = 48) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (48, width, 3), dtype=np.uint8)) for _ in PROMPTS]


def clip_of_transformers() -> CLIPModel:
    """With the settings of PickScore's `config.json`, in small."""
    text = {"hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    vision = {**text, "image_size": 32, "patch_size": 8}
    config = CLIPConfig(
        text_config={**text, "hidden_act": "gelu", "bos_token_id": 49406, "eos_token_id": 49407},
        vision_config={**vision, "hidden_act": "gelu"},
        projection_dim=24,
    )
    torch.manual_seed(0)
    model = CLIPModel(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model.logit_scale.data.fill_(4.6)
    return model


def test_pick_score_is_transformers_own(tmp_path: Path) -> None:
    model = clip_of_transformers()
    model.save_pretrained(tmp_path)
    prepare = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    tokens = open_clip.get_tokenizer("ViT-H-14")(PROMPTS)
    with torch.inference_mode():
        theirs = model(input_ids=tokens, pixel_values=prepare(images(), return_tensors="pt")["pixel_values"])
    config = PreferenceMetric(kind="pick_score", weights=tmp_path / "model.safetensors")
    (metric,) = build_metrics([config], device="cpu").metrics
    found = metric.measure(Batch(images(), PROMPTS))
    expected = theirs.logits_per_image.diagonal()
    assert [one.value for one in found] == pytest.approx(expected.tolist(), abs=2e-2)
    assert expected.abs().min() > 0.5
    assert [one.prompt_truncated for one in found] == [False, False]


def test_hps_is_the_cosine_with_the_longest_side_fitted(architecture: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = open_clip.create_model(architecture, load_weights=False).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    torch.save({"epoch": 1, "state_dict": model.state_dict()}, tmp_path / "HPS.pt")
    mean, std = (np.array(values) for values in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD))
    pixels = np.zeros((2, 32, 32, 3))
    for row, image in enumerate(images(width=96)):  # twice as wide as high: black above and below
        pixels[row, 8:24] = np.asarray(image.resize((32, 16), Image.Resampling.BICUBIC)) / 255
    prepared = torch.from_numpy((pixels - mean) / std).permute(0, 3, 1, 2).float()
    with torch.inference_mode():
        shown = model.encode_image(prepared, normalize=True)
        told = model.encode_text(open_clip.get_tokenizer(architecture)(PROMPTS), normalize=True)
    config = PreferenceMetric(kind="hps_v2", weights=tmp_path / "HPS.pt")
    (metric,) = build_metrics([config], device="cpu").metrics
    found = [one.value for one in metric.measure(Batch(images(width=96), PROMPTS))]
    assert found == pytest.approx((100 * (shown * told).sum(dim=1)).tolist(), abs=1e-2)


def test_the_full_pick_score_has_the_names_and_shapes_of_open_clips_vit_h() -> None:
    """On the meta device: 986 million numbers that are nowhere."""
    text = {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
    }
    vision = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32}
    vision |= {"num_attention_heads": 16, "patch_size": 14}
    with torch.device("meta"):
        theirs = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=1024))
        ours = open_clip.model.CLIP(**open_clip.get_model_config("ViT-H-14"))
    converted = {name: tensor.shape for name, tensor in from_transformers(theirs.state_dict())}
    assert converted == {name: tensor.shape for name, tensor in ours.state_dict().items()}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"weight": torch.zeros(3)}, "model.safetensors holds no CLIP"),
        ({"visual.class_embedding": torch.zeros(3)}, "is no harness-small-H: .* tensors, such as "),
        (b"cut", "cannot be loaded"),
    ],
)
def test_another_file_is_one_line(tmp_path: Path, content: object, message: str) -> None:
    path = tmp_path / "model.safetensors"
    if isinstance(content, dict):
        save_file(content, path)
    else:
        path.write_bytes(b"cut")
    with pytest.raises(ModelError, match=message) as error:
        build_metrics([PreferenceMetric(kind="pick_score", weights=path)], device="cpu")
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


def test_code_in_a_checkpoint_is_never_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str, str]]:
            return open, (str(tmp_path / "ran"), "w")

    torch.save({"state_dict": Evil()}, tmp_path / "HPS.pt")
    with pytest.raises(ModelError, match="cannot be loaded"):
        build_metrics([PreferenceMetric(kind="hps_v2", weights=tmp_path / "HPS.pt")], device="cpu")
    assert not (tmp_path / "ran").exists()
    torch.load(tmp_path / "HPS.pt", weights_only=False)  # the file would have
    assert (tmp_path / "ran").exists()
