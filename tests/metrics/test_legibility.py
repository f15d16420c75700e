"""With the weights in rapidocr's wheel."""

from pathlib import Path

import matplotlib
import pytest
from PIL import Image, ImageDraw, ImageFont

from harness.config.schema.metric import LegibilityMetric
from harness.errors import ModelError
from harness.metrics import build_metrics, metric_fingerprint
from harness.metrics.legibility import legible_share
from harness.metrics.metric import Batch

FONT = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans-Bold.ttf"
LINES = ("MORNING NEWS", "open all night")


def page(lines: tuple[str, ...]) -> Image.Image:
    image = Image.new("RGB", (320, 160), "white")
    for number, line in enumerate(lines):
        ImageDraw.Draw(image).text(
            (10, 20 + 70 * number), line, font=ImageFont.truetype(FONT, 32), fill="black"
        )
    return image


def torn(image: Image.Image) -> Image.Image:
    """Strips of six rows, every second one moved to the right."""
    moved = image.copy()
    for top in range(0, image.height, 12):
        moved.paste(image.crop((0, top, image.width, top + 6)), (14, top))
    return moved


@pytest.mark.slow
def test_print_is_legible_and_nonsense_torn_letters_and_nothing_are_not() -> None:
    (metric,) = build_metrics([LegibilityMetric()]).metrics
    cases = [page(LINES), page(("MRNOING NWES", "opne lla nihgt")), torn(page(LINES)), page(())]
    found = [one.value or 0.0 for one in metric.measure(Batch(cases, [""] * len(cases)))]
    assert found[0] > 0.95
    assert max(found[1:3]) < 0.6 * found[0]
    assert found[3] == 0
    assert metric.measure(Batch(cases[:1], [""]))[0].value == found[0]  # whatever its neighbours


def test_letters_count_by_word_and_confidence() -> None:
    known = frozenset({"night", "of"})
    assert legible_share([("Night 24!", 1.0)], known) == 1
    assert legible_share([("night nigth", 0.8)], known) == pytest.approx(0.4)
    assert legible_share([("night", 0.5), ("of", 1.0)], known) == pytest.approx(2.5 / 7)  # short words do not
    assert legible_share([("1234", 1.0)], known) == legible_share([], known) == 0


def test_without_the_package_one_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.distribution", _not_found)
    with pytest.raises(ModelError, match=r"needs rapidocr: pip install 'lora-sweep-harness\[ocr\]'"):
        metric_fingerprint(LegibilityMetric())


def _not_found(name: str) -> None:
    from importlib.metadata import PackageNotFoundError

    raise PackageNotFoundError(name)
