import runpy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from harness.config.schema.metric import AestheticMetric
from harness.errors import ModelError
from harness.metrics import build_metrics, weights
from harness.metrics.aesthetic import Aesthetic, LinearHead, load_head
from harness.metrics.encoder import Encoder
from harness.metrics.metric import Batch
from tests.metrics.tiny import WIDTH

FOLD = runpy.run_path(str(Path(__file__).parents[2] / "experiments" / "laion_head" / "fold.py"))


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


def test_the_laion_head_is_the_published_one() -> None:
    """The numbers of the source's five layers, multiplied out."""
    head = load_head("laion")
    assert head.weight_D.norm().item() == pytest.approx(17.995624776433647, abs=1e-12)
    assert head.bias == pytest.approx(5.23664585, abs=1e-8)
    assert head.weight_D[:3].tolist() == pytest.approx([-0.69159344, -0.55699387, -0.32116852], abs=1e-8)


def test_folding_changes_nothing() -> None:
    """Layers of the predictor's shapes with other numbers, against what they are folded into."""
    sizes = [(768, 1024), (1024, 128), (128, 64), (64, 16), (16, 1)]
    layers = [torch.nn.Linear(*size) for size in sizes]
    state = {
        f"layers.{number}.{name}": part.detach()
        for layer, number in zip(layers, FOLD["LAYERS"], strict=True)
        for name, part in layer.named_parameters()
    }
    folded = FOLD["folded"](state)
    embeddings = torch.nn.functional.normalize(torch.randn(5, 768, dtype=torch.float64), dim=1)
    with torch.inference_mode():
        theirs = torch.nn.Sequential(*layers).double()(embeddings)[:, 0]
    assert torch.allclose(folded["bias"] + embeddings @ folded["weight"][0], theirs, atol=1e-12)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda weight: weight * 1.01, r"is not LAION's: ‖w‖ = 18\.17"),
        (lambda weight: b"cut", "is damaged"),
    ],
)
def test_a_head_that_is_not_the_shipped_one_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    damage: Callable[[torch.Tensor], torch.Tensor | bytes],
    message: str,
) -> None:
    path = tmp_path / "laion" / "aesthetic.safetensors"
    path.parent.mkdir()
    head = load_file(weights.head_file("laion"))
    found = damage(head["weight"])
    if isinstance(found, bytes):
        path.write_bytes(found)
    else:
        save_file({**head, "weight": found}, path)
    monkeypatch.setattr(weights, "SHIPPED", tmp_path)
    with pytest.raises(ModelError, match=message):
        load_head("laion")


def test_a_head_on_another_encoder_stops_before_any_image(clip_folder: Path) -> None:
    config = AestheticMetric(encoder=f"local-dir:{clip_folder}", head="laion")
    with pytest.raises(ModelError, match="the head `laion` belongs to ViT-L-14-quickgelu/openai"):
        build_metrics([config], device="cpu")
