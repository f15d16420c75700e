"""Damaged images of a folder, and damaged PNG for redraw.

An image of a folder is wrongly taken when it is not 8-bit RGB within the limits, when reading it needed room
for more than the limits allow, or when it is a PNG of which a checksum is wrong. A PNG for redraw is wrongly
taken when what it says of its image was changed, and redraw still calls the new image equal.
"""

import io
import json
import random
import struct
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import psutil
from PIL import Image, ImageDraw
from safetensors.torch import save

from benchmarks.fuzz.adapters import peft, some_layers
from benchmarks.fuzz.cases import JUNK, Cases, damaged, mutated
from harness.config.loading.image_folder import MOST_ELONGATED, MOST_PIXELS, SHORTEST_SIDE, read_image
from harness.config.loading.tokens import model_digest
from harness.config.plan.plan import ResolvedAdapter, ResolvedArm, cells
from harness.config.schema.evaluation import CfgGuider, Prompt
from harness.config.schema.model import EmojiModel
from harness.diffusion.models import load_model
from harness.diffusion.sampling import png
from harness.diffusion.sampling.generate import Part, generate_cells
from harness.diffusion.sampling.redraw import redraw

ROOM = 2**30  # bytes: more than an image of the limits needs, less than a bomb
HUGE = 40_000  # pixels of a bomb's side


def damaged_images(folder: Path, *, seed: int, count: int) -> Cases:
    """Images of each format and mode with damaged bytes, and images that say that they are huge."""
    process = psutil.Process()
    for number in range(count):
        dice = random.Random(f"image {seed} {number}")
        kind = dice.choice(list(IMAGES))
        content = IMAGES[kind](dice)
        is_whole = dice.random() < 0.1
        done, content = ("as it is", content) if is_whole else damaged(content, dice)
        file = folder / f"a{dice.choice(('.png', '.jpg', '.webp'))}"
        file.write_bytes(content)

        def read(file: Path = file, content: bytes = content) -> None:
            before = process.memory_info().rss
            image = read_image(file)
            assert process.memory_info().rss - before < ROOM, "more room than the limits allow"
            short, long = sorted(image.size)
            assert image.mode == "RGB" and short >= SHORTEST_SIDE and long <= MOST_ELONGATED * short
            assert short * long <= MOST_PIXELS, "an image beyond the limits is taken"
            assert not content.startswith(SIGNATURE) or _checks(content), (
                "a PNG with a wrong checksum is taken"
            )

        yield f"{kind}, {done}, as {file.suffix}", read


SIGNATURE = b"\x89PNG\r\n\x1a\n"


def _checks(content: bytes) -> bool:
    """Whether the checksums of a PNG's chunks are right, up to its end; ancillary chunks may be damaged."""
    place = len(SIGNATURE)
    while place + 12 <= len(content):
        (length,), kind = struct.unpack(">I", content[place : place + 4]), content[place + 4 : place + 8]
        end = place + 8 + length
        is_ancillary = bool(kind[:1]) and bool(kind[0] & 0x20)
        if not is_ancillary and content[end : end + 4] != struct.pack(
            ">I", zlib.crc32(content[place + 4 : end])
        ):
            return False
        if kind == b"IEND":
            return True
        place = end + 4
    return False


def _saved(image: Image.Image, kind: str, **how: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **how)
    return file.getvalue()


def _drawing(mode: str, dice: random.Random) -> Image.Image:
    image = Image.new("RGB", (dice.randrange(8, 80), dice.randrange(8, 80)), "orange")
    ImageDraw.Draw(image).ellipse((2, 2, 20, 30), fill="blue")
    return image.convert("L").convert(mode) if mode in ("I;16", "F") else image.convert(mode)


def _png(mode: str) -> Callable[[random.Random], bytes]:
    return lambda dice: _saved(_drawing(mode, dice), "PNG", dpi=(72, 72))


def _with_exif(dice: random.Random) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = dice.choice((1, 3, 6, 8, 99))
    exif[0x010F] = "x" * 200
    return _saved(_drawing("RGB", dice), "JPEG", exif=exif, icc_profile=dice.randbytes(300))


def _animated(kind: str) -> Callable[[random.Random], bytes]:
    def make(dice: random.Random) -> bytes:
        first = _drawing("RGB", dice)
        return _saved(first, kind, save_all=True, append_images=[first.rotate(90 * n) for n in (1, 2)])

    return make


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def bomb(width: int = HUGE, height: int = HUGE) -> bytes:
    """A PNG of few bytes that says, and has, so many pixels of one bit."""
    rows = zlib.compress(bytes(min((width // 8 + 1) * height, 2**22)), 9)
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", rows) + _chunk(b"IEND", b"")


def _text_bomb(dice: random.Random) -> bytes:
    """A small PNG with a text, or a colour profile, of 256 MB once it is unpacked."""
    content = _saved(_drawing("RGB", dice), "PNG")
    packed = _packed_zeros(dice.choice((2**22, 2**28)))
    kind = dice.choice((b"zTXt", b"iCCP", b"iTXt"))
    text = b"harness\0" + (b"\1\0\0\0" if kind == b"iTXt" else b"\0") + packed
    return content[:33] + _chunk(kind, text) + content[33:]


@cache
def _packed_zeros(size: int) -> bytes:
    return zlib.compress(bytes(size), 9)


def _huge_jpeg(dice: random.Random) -> bytes:
    content = bytearray(_saved(_drawing("RGB", dice), "JPEG"))
    place = content.index(b"\xff\xc0") + 5
    content[place : place + 4] = struct.pack(">HH", 65_500, 65_500)
    return bytes(content)


def _huge_webp(dice: random.Random) -> bytes:
    content = bytearray(_saved(_drawing("RGBA", dice), "WEBP", exif=b"Exif\0\0"))
    content[24:30] = (2**24 - 2).to_bytes(3, "little") * 2
    return bytes(content)


IMAGES: dict[str, Callable[[random.Random], bytes]] = {
    **{f"PNG {mode}": _png(mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")},
    "JPEG RGB": lambda dice: _saved(_drawing("RGB", dice), "JPEG"),
    "JPEG CMYK": lambda dice: _saved(_drawing("CMYK", dice), "JPEG"),
    "JPEG progressive": lambda dice: _saved(_drawing("L", dice), "JPEG", progressive=True),
    "JPEG with EXIF": _with_exif,
    "WebP": lambda dice: _saved(_drawing("RGBA", dice), "WEBP"),
    "WebP lossless": lambda dice: _saved(_drawing("RGB", dice), "WEBP", lossless=True),
    "WebP animated": _animated("WEBP"),
    "PNG animated": _animated("PNG"),
    "GIF": _animated("GIF"),
    "TIFF float": lambda dice: _saved(_drawing("F", dice), "TIFF"),
    "BMP": lambda dice: _saved(_drawing("RGB", dice), "BMP"),
    "EPS": lambda dice: _saved(_drawing("RGB", dice), "EPS"),
    "PNG bomb": lambda dice: bomb(),
    "PNG bomb, long": lambda dice: bomb(2**31 - 1, 8),
    "text bomb": _text_bomb,
    "JPEG bomb": _huge_jpeg,
    "WebP bomb": _huge_webp,
    "nothing": lambda dice: b"",
}

STEPS = 2
SMALL = tuple(junk for junk in JUNK if junk not in (64, 10**30))  # what is a number of steps, but not many


def damaged_pngs(folder: Path, *, seed: int, count: int) -> Cases:
    """One generated image whose text says another thing than it did, or has damaged bytes."""
    image = _generated(folder)
    with Image.open(image) as opened:
        opened.load()
        pixels, chunks = (
            opened.convert("RGB"),
            {key: opened.info[key] for key in (png.PARAMETERS, png.HARNESS)},
        )
    about = json.loads(chunks[png.HARNESS])
    file = folder / "damaged.png"
    for number in range(count):
        dice = random.Random(f"png {seed} {number}")
        changed = about
        way = dice.choice(("fact", "fact", "fact", "fact", "text", "bytes", "bomb"))
        match way:
            case "fact":
                done, changed = mutated(about, dice, junk=SMALL)
                png.save(pixels, file, {**chunks, png.HARNESS: json.dumps(changed)})
            case "text":
                done, text = damaged(chunks[png.HARNESS].encode(), dice)
                png.save(pixels, file, {png.HARNESS: text.decode(errors="replace")})
            case "bytes":
                done, content = damaged(image.read_bytes(), dice)
                file.write_bytes(content)
            case "bomb":
                done = dice.choice([name for name in IMAGES if "bomb" in name])
                file.write_bytes(IMAGES[done](dice))
        output = folder / f"again-{number}.png"

        def read(output: Path = output, changed: Any = changed, in_file: bool = way == "bytes") -> None:
            result = redraw(file, workspace=None, output=output)
            decides = [changed[part][name] for part, name in DECIDES] != [
                about[part][name] for part, name in DECIDES
            ]
            assert not (decides and result.equal), "redraw calls another image equal"
            assert result.difference == 0 or not in_file, "a damaged image is taken for another"

        yield done, read


DECIDES = (
    ("cell", "prompt"),
    ("cell", "noise_seed"),
    ("arm", "guidance"),
    ("arm", "steps"),
    ("arm", "negative"),
)


def _generated(folder: Path) -> Path:
    config = EmojiModel()
    config = config.model_copy(update={"digest": model_digest(config)})
    file = folder / "a.safetensors"
    file.write_bytes(save(peft(some_layers())))
    adapter = ResolvedAdapter(
        run_id=None,
        steps=None,
        weights="last",
        file=file,
        hub=None,
        digest="0" * 64,
        scale=1.0,
        branch="negative",
    )
    arm = ResolvedArm(
        arm_id="0123456789abcdef",
        arm="wrong",
        model=config,
        negative="wrong",
        guidance=4.0,
        guidance_interval=(0.0, 0.9),
        guidance_rescale=0.2,
        guider=CfgGuider(),
        steps=STEPS,
        scheduler="EulerDiscreteScheduler",
        size=None,
        noise="per_prompt",
        refiner_start=None,
        adapters=(adapter,),
        merge=None,
    )
    (cell,) = cells(arm, (Prompt(text="a (red)++ fox", split="test"),), (7,), "test")
    generate_cells(
        [Part(arm=arm, cells=[cell], folder=folder)], load_model(config, device="cpu"), lambda _: file
    )
    return folder / f"{cell.image_id}.png"
