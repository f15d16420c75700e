"""Can the text in an image be read?"""

import hashlib
import re

from rapidocr import RapidOCR

from harness.config.schema.metric import LegibilityMetric
from harness.metrics.encoder import known_words
from harness.metrics.metric import Batch, Measurement, measurement
from harness.metrics.weights import ocr_version

SHORTEST = 3  # letters: of shorter words nearly all are known


class Legibility:
    """The share of letters that belong to known words, each by the reader's confidence; from 0 to 1.

    Text is found and read by PP-OCRv6 (rapidocr, whose wheel has the weights). Known are the words of CLIP's
    vocabulary from three letters on. An image without text has 0, so use it with prompts that ask for text.
    It is a proxy: readers of text guess over torn letters (arXiv 2602.20903), and what they guess is a word.
    """

    kind = "legibility"
    version = LegibilityMetric.version

    def __init__(self) -> None:
        self.weights_hash = hashlib.sha256(f"rapidocr {ocr_version()}".encode()).hexdigest()[:16]
        self._reader = RapidOCR(params={"Global.log_level": "error"})
        self._words = known_words()

    def measure(self, batch: Batch) -> list[Measurement]:
        """One share per image."""
        measured = []
        for pixels in batch.pixels:
            found = self._reader(pixels[:, :, ::-1])  # it expects blue first
            lines = zip(found.txts or (), found.scores or (), strict=True)
            measured.append(measurement(legible_share(list(lines), self._words)))
        return measured


def legible_share(lines: list[tuple[str, float]], known: frozenset[str]) -> float:
    """Of lines with their confidences; digits and signs do not count. 0 without a letter."""
    letters, legible = 0, 0.0
    for text, confidence in lines:
        for word in re.findall(r"[^\W\d_]+", text.lower()):
            letters += len(word)
            legible += len(word) * float(confidence) * (len(word) >= SHORTEST and word in known)
    return legible / letters if letters else 0.0
