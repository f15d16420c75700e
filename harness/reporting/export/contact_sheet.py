"""The contact sheet: one prompt and seed to a row, one arm to a column, from the same latents along a row."""

import io

from PIL import Image, ImageDraw, ImageFont

from harness.config.loading.files import one_line
from harness.errors import ArtifactError
from harness.reporting.export.evidence import Evidence, Pair, Tile
from harness.store.workspace import Workspace

TILE = 256  # pixels of an image's longer side
GAP = 12
HEAD, CAPTION, FOOT = 34, 26, 22  # heights of a column's title, a row's prompt, a score
PAPER, INK, FAINT, ACCENT = (255, 255, 255), (24, 24, 24), (110, 110, 110), (9, 92, 160)
ELLIPSIS = "…"

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def contact_sheet(evidence: Evidence, workspace: Workspace) -> Image.Image:
    """The sheet. An image whose file is gone leaves an empty frame, as one that was never generated."""
    width = GAP + len(evidence.arms) * (TILE + GAP)
    row_height = CAPTION + TILE + FOOT + GAP
    sheet = Image.new("RGB", (width, GAP + HEAD + len(evidence.pairs) * row_height), PAPER)
    pen = ImageDraw.Draw(sheet)
    title, text = ImageFont.load_default(size=18), ImageFont.load_default(size=14)
    for column, arm in enumerate(evidence.arms):
        colour = ACCENT if arm == evidence.arm else INK
        pen.text((_left(column), GAP), _cut(pen, arm, title, TILE), font=title, fill=colour)
    for place, pair in enumerate(evidence.pairs):
        top = GAP + HEAD + place * row_height
        caption = _cut(pen, one_line(f"{pair.prompt} · seed {pair.seed}"), text, width - 2 * GAP)
        pen.text((GAP, top), caption, font=text, fill=INK)
        for column, arm in enumerate(evidence.arms):
            _tile(sheet, (_left(column), top + CAPTION), workspace, pair.shots[arm])
            score = _score(evidence, pair, arm)
            pen.text((_left(column), top + CAPTION + TILE + 3), score, font=text, fill=FAINT)
    return sheet


def _left(column: int) -> int:
    return GAP + column * (TILE + GAP)


def _tile(sheet: Image.Image, corner: tuple[int, int], workspace: Workspace, shot: Tile | None) -> None:
    left, top = corner
    image = None if shot is None else read_image(workspace, shot.path)
    if image is None:
        ImageDraw.Draw(sheet).rectangle((left, top, left + TILE - 1, top + TILE - 1), outline=FAINT)
        return
    fitted = _fit(image)
    sheet.paste(fitted, (left + (TILE - fitted.width) // 2, top + (TILE - fitted.height) // 2))


def read_image(workspace: Workspace, path: str) -> Image.Image | None:
    """The pixels alone; None if the file is gone, or is not the one that was generated."""
    folder, _, name = path.rpartition("/")
    try:
        with Image.open(io.BytesIO(workspace.artifact(folder).read(name))) as opened:
            return opened.convert("RGB")
    except (ArtifactError, OSError):
        return None


def _fit(image: Image.Image) -> Image.Image:
    """Small images are enlarged by a whole factor, pixel by pixel; large ones are reduced."""
    longest = max(image.size)
    if longest <= TILE:
        factor = TILE // longest
        return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    scale = TILE / longest
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.LANCZOS)


def _score(evidence: Evidence, pair: Pair, arm: str) -> str:
    shot, control = pair.shots[arm], pair.shots[evidence.control]
    if shot is None or shot.score is None:
        return "no score"
    text = f"{evidence.primary} {shot.score:.2f}"
    if arm == evidence.control or control is None or control.score is None:
        return text
    return f"{text} ({shot.score - control.score:+.2f})"  # Pillow's own font has no minus sign


def _cut(pen: ImageDraw.ImageDraw, text: str, font: Font, width: float) -> str:
    """The text, or as much of it as fits."""
    if pen.textlength(text, font=font) <= width:
        return text
    while text and pen.textlength(text + ELLIPSIS, font=font) > width:
        text = text[:-1]
    return text.rstrip() + ELLIPSIS
