"""Does the image show what the prompt says?"""

from torchmetrics.functional import cosine_similarity

from harness.config.schema.metric import ClipScoreMetric
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
        prompts_BD, truncated = self.encoder.embed_prompts(batch.prompts)
        cosines_B = cosine_similarity(
            batch.embeddings(self.encoder).double(), prompts_BD.double(), reduction="none"
        )
        return [
            measurement(100 * value, prompt_truncated=cut)
            for value, cut in zip(cosines_B.tolist(), truncated, strict=True)
        ]
