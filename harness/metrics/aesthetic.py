"""How good does the image look? A linear head on the unit image embedding, b + w·ê."""

import hashlib
from dataclasses import dataclass

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from harness.config.schema.metric import AestheticMetric
from harness.errors import ModelError
from harness.metrics.encoder import Encoder, hash_tensors
from harness.metrics.metric import Batch, Measurement, measurement
from harness.metrics.weights import head_file

# Of LAION's head as published, multiplied out in float64 (laion/PROVENANCE.md).
LAION_WEIGHT_NORM = 17.995624776
LAION_BIAS = 5.236645846


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

    With the head `laion` (version 2; Schuhmann et al. 2022, arXiv 2210.08402) on `ViT-L-14-quickgelu/openai`
    this is the usual "aesthetic score"; with `emoji` on `emoji` it is the
    embedded stand-in, trained on known damage.
    Raises ModelError where the head is not for this encoder.
    """

    kind = "aesthetic"
    version = AestheticMetric.version

    def __init__(self, encoder: Encoder, head: LinearHead) -> None:
        if encoder.width != len(head.weight_D):
            raise ModelError(
                f"aesthetic head {head.source} wants embeddings of width {len(head.weight_D)}, but "
                f"encoder {encoder.name!r} gives {encoder.width}; the head `laion` belongs to "
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
    """A head that ships in the package. Raises ModelError where its file is damaged."""
    path = head_file(head)
    try:
        state = load_file(path)
    except SafetensorError as error:
        raise ModelError(f"aesthetic head {path} is damaged: {error}") from error
    assert state.keys() == {"weight", "bias"} and state["weight"].shape[0] == 1, f"{path}: {sorted(state)}"
    weight_D, bias = state["weight"][0].double(), state["bias"].double().item()
    if head == "laion":
        norm = weight_D.norm().item()
        if abs(norm - LAION_WEIGHT_NORM) > 1e-6 or abs(bias - LAION_BIAS) > 1e-6:
            raise ModelError(
                f"aesthetic head {path} is not LAION's: ‖w‖ = {norm:.6f} and b = {bias:.6f}, not "
                f"{LAION_WEIGHT_NORM:.6f} and {LAION_BIAS:.6f}; install the package again"
            )
    return LinearHead(weight_D=weight_D, bias=bias, source=f"`{head}`")
