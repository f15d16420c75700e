"""Cosines of an image's embedding with those of texts: of its prompt, or of two that oppose each other."""

import math
from typing import Literal

from torchmetrics.functional import cosine_similarity

from harness.config.schema.metric import ClipIqaMetric, ClipScoreMetric, PreferenceMetric
from harness.metrics.encoder import Encoder
from harness.metrics.metric import Batch, Measurement, measurement


class ClipScore:
    """Cosine of the image's and the plain prompt's CLIP embeddings, times 100; higher is better.

    After Hessel et al. 2021 (arXiv 2104.08718), without their factor 2.5 and their clamp at 0, which would
    hide differences between bad images. Range −100 to 100; real pairs lie at about 20–35 for ViT-L/14.
    The prompt is the one the user wrote, without compel's weights and whatever the arm's negative prompt.
    One longer than the encoder's context is cut (end token kept) and marked `prompt_truncated`.

    torchmetrics' own CLIPScore gives a mean only, which no paired comparison can use; its cosine does fit.
    """

    kind = "clip_score"
    version = ClipScoreMetric.version

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self.weights_hash = encoder.weights_hash

    def measure(self, batch: Batch) -> list[Measurement]:
        """One cosine × 100 per image."""
        return _with_prompts(batch, self.encoder, factor=100)


class Preference:
    """How people would like the image for its prompt, as a CLIP learnt it from their choices; more is better.

    - `pick_score`: the cosine times the model's own temperature, as its authors give it; SDXL's images have
      about 22.
    - `hps_v2`: the cosine times 100, as in the tables of its authors; 30.63 for SDXL's base with version 2.1.

    Both follow the guidance: more of it raises them, up to images that are overdone ("Guidance Matters",
    arXiv 2602.22570). Compare images of the same prompt alone. Prompts as for `ClipScore`.
    """

    version = PreferenceMetric.version

    def __init__(self, kind: Literal["pick_score", "hps_v2"], encoder: Encoder) -> None:
        self.kind, self.encoder = kind, encoder
        self.weights_hash = encoder.weights_hash

    def measure(self, batch: Batch) -> list[Measurement]:
        """One score per image."""
        factor = self.encoder.logit_scale if self.kind == "pick_score" else 100
        return _with_prompts(batch, self.encoder, factor=factor)


class ClipIqa:
    """The probability that the first of two texts is the image's, from 0 to 1 (CLIP-IQA, arXiv 2207.12396).

    A softmax of two cosines, so a logistic function of their difference, at the model's own temperature.
    The prompt plays no part.
    """

    kind = "clip_iqa"
    version = ClipIqaMetric.version

    def __init__(self, encoder: Encoder, texts: tuple[str, str]) -> None:
        self.encoder, self.texts = encoder, texts
        self.weights_hash = encoder.weights_hash

    def measure(self, batch: Batch) -> list[Measurement]:
        """One probability per image."""
        first_D, second_D = self.encoder.embed_prompts(self.texts)[0].double()
        # Row by row, for a matrix product rounds by the size of the batch.
        apart_B = (batch.embeddings(self.encoder).double() * (first_D - second_D)).sum(dim=1)
        log_odds_B = self.encoder.logit_scale * apart_B
        return [measurement(1 / (1 + math.exp(-log_odds))) for log_odds in log_odds_B.tolist()]


def _with_prompts(batch: Batch, encoder: Encoder, *, factor: float) -> list[Measurement]:
    """Cosine with the own prompt, times the factor."""
    prompts_BD, truncated = encoder.embed_prompts(batch.prompts)
    cosines_B = cosine_similarity(batch.embeddings(encoder).double(), prompts_BD.double(), reduction="none")
    return [
        measurement(factor * value, prompt_truncated=cut)
        for value, cut in zip(cosines_B.tolist(), truncated, strict=True)
    ]
