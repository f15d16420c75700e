"""How good does the image look? A linear head on the unit image embedding, b + w·ê."""

import hashlib
import pickle
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from harness.config.schema.metric import AestheticMetric
from harness.errors import ModelError
from harness.metrics.encoder import Encoder, hash_tensors
from harness.metrics.metric import Batch, Measurement, measurement
from harness.metrics.weights import head_file

# The LAION v2 head folded in float64, as computed from the published file.
LAION_WEIGHT_NORM = 17.995624776
LAION_BIAS = 5.23664585
_LAION_LAYERS = {0: (1024, 768), 2: (128, 1024), 4: (64, 128), 6: (16, 64), 7: (1, 16)}


@dataclass(frozen=True, kw_only=True)
class LinearHead:
    """score = bias + weight·ê, in float64. `source` is for messages."""

    weight_D: torch.Tensor
    bias: float
    source: str

    @property
    def weights_hash(self) -> str:
        """16 hex digits of weight and bias."""
        return hash_tensors({"weight": self.weight_D, "bias": torch.tensor(self.bias).double()}.items())


class Aesthetic:
    """Predicted rating, about 1 to 10; higher is better.

    With the LAION v2 head (Schuhmann et al. 2022, arXiv 2210.08402) on `ViT-L-14-quickgelu/openai` this is
    the usual "aesthetic score"; with `emoji` on `emoji` it is the embedded stand-in, trained on known damage.
    Raises ModelError where the head is not for this encoder.
    """

    kind = "aesthetic"
    version = AestheticMetric.version

    def __init__(self, encoder: Encoder, head: LinearHead) -> None:
        if encoder.width != len(head.weight_D):
            raise ModelError(
                f"aesthetic head {head.source} wants embeddings of width {len(head.weight_D)}, but "
                f"encoder {encoder.name!r} gives {encoder.width}; the LAION head belongs to "
                "ViT-L-14-quickgelu/openai, the head `emoji` to the encoder `emoji`"
            )
        self.encoder, self.head = encoder, head
        both = f"{encoder.weights_hash} {head.weights_hash}"
        self.weights_hash = hashlib.sha256(both.encode()).hexdigest()[:16]

    def measure(self, batch: Batch) -> list[Measurement]:
        """One rating per image."""
        embeddings_BD = batch.embeddings(self.encoder).double()
        ratings_B = self.head.bias + (embeddings_BD * self.head.weight_D).sum(dim=1)
        return [measurement(value) for value in ratings_B.tolist()]


def load_head(head: str) -> LinearHead:
    """The head of a spec: `emoji`, or the path of the LAION v2 `.pth`. Raises ModelError for another file."""
    path = head_file(head)
    return _embedded_head(path) if head == "emoji" else laion_head(path)


def laion_head(path: Path) -> LinearHead:
    """The LAION v2 predictor as the linear function it is.

    Its five layers have no activation between them (and dropout is off when scoring), so they fold into one
    dot product, which is exact, fast and names the direction that is measured.
    """
    wrong = f"aesthetic head {path} is not the LAION v2 head (sac+logos+ava1-l14-linearMSE.pth): "
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ModelError(wrong + "it holds something else than tensors, or is damaged") from error
    shapes: dict[str, tuple[int, ...]] = {
        f"layers.{layer}.weight": shape for layer, shape in _LAION_LAYERS.items()
    }
    shapes |= {f"layers.{layer}.bias": shape[:1] for layer, shape in _LAION_LAYERS.items()}
    found = {name: tuple(tensor.shape) for name, tensor in state.items()} if isinstance(state, dict) else {}
    if found != shapes:
        raise ModelError(wrong + "its layers have other names or shapes")
    weight = torch.eye(768, dtype=torch.float64)
    bias = torch.zeros(768, dtype=torch.float64)
    for layer in _LAION_LAYERS:
        matrix = state[f"layers.{layer}.weight"].double()
        weight, bias = matrix @ weight, matrix @ bias + state[f"layers.{layer}.bias"].double()
    norm, offset = weight.norm().item(), bias.item()
    if abs(norm - LAION_WEIGHT_NORM) > 1e-3 or abs(offset - LAION_BIAS) > 1e-4:
        raise ModelError(wrong + f"it folds to ‖w‖ = {norm:.4f}, b = {offset:.4f}, not 17.9956 and 5.2366")
    return LinearHead(weight_D=weight[0], bias=offset, source=str(path))


def _embedded_head(path: Path) -> LinearHead:
    try:
        state = load_file(path)
    except SafetensorError as error:
        raise ModelError(f"aesthetic head {path} is damaged: {error}") from error
    assert state.keys() == {"weight", "bias"} and state["weight"].shape[0] == 1, f"{path}: {sorted(state)}"
    weight_1D, bias_1 = state["weight"].double(), state["bias"].double()
    return LinearHead(weight_D=weight_1D[0], bias=bias_1.item(), source="`emoji`")
