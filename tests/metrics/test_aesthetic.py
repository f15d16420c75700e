import math
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from harness.config.schema.metric import AestheticMetric
from harness.errors import ModelError
from harness.metrics import build_metrics
from harness.metrics.aesthetic import Aesthetic, LinearHead, laion_head, load_head
from harness.metrics.encoder import Encoder
from harness.metrics.metric import Batch
from tests.metrics.tiny import WIDTH

LAION = Path(__file__).parents[2].parent / "shared" / "data" / "sac+logos+ava1-l14-linearMSE.pth"
needs_laion = pytest.mark.skipif(
    not LAION.is_file(), reason="the LAION v2 head (3.7 MB, Apache-2.0) is not at hand"
)


def test_the_rating_is_linear_in_the_unit_embedding(encoder: Encoder) -> None:
    head = LinearHead(weight_D=torch.linspace(-1, 1, WIDTH).double(), bias=5.0, source="a test")
    images = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue")]
    found = Aesthetic(encoder, head).measure(Batch(images, ["red", "red"]))
    expected = 5 + encoder.embed_images(images).double() @ head.weight_D
    assert [one.value for one in found] == pytest.approx(expected.tolist())
    assert found[0].prompt_truncated is None


def test_the_hash_covers_encoder_and_head(encoder: Encoder) -> None:
    zeros = torch.zeros(WIDTH).double()
    hashes = {
        Aesthetic(encoder, LinearHead(weight_D=weight, bias=bias, source="")).weights_hash
        for weight, bias in [(zeros, 0.0), (zeros, 1.0), (zeros + 1, 0.0)]
    }
    assert len(hashes | {encoder.weights_hash}) == 4


def test_a_head_of_another_encoder_is_refused_on_building(encoder: Encoder) -> None:
    head = LinearHead(weight_D=torch.zeros(768).double(), bias=0.0, source="x.pth")
    with pytest.raises(
        ModelError, match=f"x.pth wants embeddings of width 768, but encoder .* gives {WIDTH}"
    ):
        Aesthetic(encoder, head)


@needs_laion
def test_the_laion_head_folds_to_the_published_numbers() -> None:
    head = load_head(str(LAION))
    assert head.weight_D.norm().item() == pytest.approx(17.995624776433647, abs=1e-6)
    assert head.bias == pytest.approx(5.23664585, abs=1e-6)
    assert head.weight_D[:3].tolist() == pytest.approx([-0.69159344, -0.55699387, -0.32116852], abs=1e-6)


@needs_laion
def test_folding_changes_nothing() -> None:
    state = torch.load(LAION, map_location="cpu", weights_only=True)
    sizes = [(768, 1024), (1024, 128), (128, 64), (64, 16), (16, 1)]
    layers = [torch.nn.Linear(*size).double() for size in sizes]
    for layer, number in zip(layers, (0, 2, 4, 6, 7), strict=True):
        layer.load_state_dict(
            {part: state[f"layers.{number}.{part}"].double() for part in ("weight", "bias")}
        )
    embeddings = torch.nn.functional.normalize(torch.randn(5, 768, dtype=torch.float64), dim=1)
    head = laion_head(LAION)
    with torch.inference_mode():
        theirs = torch.nn.Sequential(*layers)(embeddings)[:, 0]
    assert torch.allclose(head.bias + embeddings @ head.weight_D, theirs, atol=1e-9)


@needs_laion
def test_a_sibling_of_the_laion_head_is_refused(tmp_path: Path) -> None:
    state = torch.load(LAION, map_location="cpu", weights_only=True)
    state["layers.7.weight"] = state["layers.7.weight"] * 1.01
    torch.save(state, tmp_path / "sibling.pth")
    with pytest.raises(
        ModelError, match=r"sibling\.pth is not the LAION v2 head .* it folds to ‖w‖ = 18\.17"
    ):
        load_head(str(tmp_path / "sibling.pth"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"weight": torch.zeros(1, 768)}, "its layers have other names or shapes"),
        ([1, 2], "its layers have other names or shapes"),
        (math.sqrt, "it holds something else than tensors, or is damaged"),  # code: weights_only refuses it
        (b"not a checkpoint", "it holds something else than tensors, or is damaged"),
    ],
)
def test_another_file_is_refused(tmp_path: Path, content: object, message: str) -> None:
    path = tmp_path / "head.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(ModelError, match=message):
        load_head(str(path))


def test_a_missing_file_says_which_one_is_meant(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no file .*none\.pth; give `emoji` or the path of sac\+logos"):
        load_head(str(tmp_path / "none.pth"))


@needs_laion
def test_the_laion_head_on_a_small_encoder_stops_before_any_image(clip_folder: Path) -> None:
    config = AestheticMetric(encoder=f"local-dir:{clip_folder}", head=str(LAION))
    with pytest.raises(ModelError, match="the LAION head belongs to ViT-L-14-quickgelu/openai"):
        build_metrics([config], device="cpu")


def test_the_embedded_head_is_weight_and_bias(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file(
        {"weight": torch.ones(1, WIDTH), "bias": torch.tensor([2.5])}, tmp_path / "aesthetic.safetensors"
    )
    monkeypatch.setattr("harness.metrics.weights.EMBEDDED", tmp_path)
    head = load_head("emoji")
    assert (head.bias, head.weight_D.sum().item()) == (2.5, WIDTH)
    (tmp_path / "aesthetic.safetensors").write_bytes(b"cut")
    with pytest.raises(ModelError, match="is damaged"):
        load_head("emoji")
