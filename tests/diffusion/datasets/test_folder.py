import io
import json
import resource
import struct
import unicodedata
import zlib
from pathlib import Path
from random import Random

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageOps

from harness.config.loading.image_folder import _webp_size, find_images, read_image, scan
from harness.config.schema.recipe import FolderRecipe
from harness.diffusion.datasets.folder import fitted, samples
from harness.errors import ConfigError
from tests.config.example import load

ORIENTATION = 0x0112


def gradient(width: int, height: int) -> Image.Image:
    red = np.linspace(0, 255, width, dtype=np.uint8)[None].repeat(height, axis=0)
    green = np.linspace(0, 255, height, dtype=np.uint8)[:, None].repeat(width, axis=1)
    return Image.fromarray(np.stack([red, green, np.full_like(red, 90)], axis=-1))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    (folder / "below").mkdir(parents=True)
    gradient(90, 60).save(folder / "b.png")
    gradient(40, 80).save(folder / "a.JPG", format="JPEG")
    gradient(64, 64).save(folder / "below" / "c.webp")
    (folder / "notes.txt").write_text("not an image")
    (folder / "._b.png").write_bytes(b"what some systems leave beside a file")
    return folder


def test_images_are_found_below_the_folder_in_order_of_their_names(images: Path) -> None:
    assert [file.relative_to(images).as_posix() for file in find_images(images)] == [
        "a.JPG",
        "b.png",
        "below/c.webp",
    ]


def test_the_digest_follows_bytes_and_names_and_not_the_place(images: Path, tmp_path: Path) -> None:
    found = scan(images)
    assert (found.images, found.captioned) == (3, False)
    moved = images.rename(tmp_path / "elsewhere")
    assert scan(moved) == found
    (moved / "a.JPG").rename(moved / "z.jpg")
    assert scan(moved).digest != found.digest
    (moved / "z.jpg").rename(moved / "a.JPG")
    gradient(91, 60).save(moved / "b.png")
    assert scan(moved).digest != found.digest


def test_images_stay_whole(images: Path) -> None:
    """The shorter side is the resolution, the longer a multiple of 8; training crops."""
    made = list(samples(FolderRecipe(path=images), resolution=32))
    assert [sample.image.size for sample in made] == [(32, 64), (48, 32), (32, 32)]
    assert [sample.original_size for sample in made] == [(40, 80), (90, 60), (64, 64)]
    wide = np.asarray(made[1].image).astype(int)
    assert (wide[16, 0, 0], wide[16, -1, 0]) == (pytest.approx(0, abs=8), pytest.approx(255, abs=8))
    assert (wide[0, 16, 1], wide[-1, 16, 1]) == (pytest.approx(0, abs=8), pytest.approx(255, abs=8))


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((100, 100), (64, 64)),
        ((100, 70), (88, 64)),
        ((70, 100), (64, 88)),
        ((67, 64), (64, 64)),
        ((9, 30), (64, 208)),
    ],
)
def test_rounding_squeezes_nothing(size: tuple[int, int], expected: tuple[int, int]) -> None:
    image = Image.new("RGB", size)
    ellipse = ImageDraw.Draw(image)
    x, y, r = size[0] / 2, size[1] / 2, min(size) / 3
    ellipse.ellipse((x - r, y - r, x + r, y + r), fill="white")
    made = np.asarray(fitted(image, resolution=64))[:, :, 0] > 127
    assert made.shape == expected[::-1]
    assert made.any(axis=0).sum() == pytest.approx(made.any(axis=1).sum(), abs=4)  # a circle still


def caption(folder: Path) -> dict[str, str | None]:
    recipe = FolderRecipe(path=folder)
    return {
        file.name: sample.caption
        for file, sample in zip(find_images(folder), samples(recipe, resolution=8), strict=True)
    }


def test_captions_are_beside_the_images_or_listed(images: Path) -> None:
    (images / "a.txt").write_text(" a red fox \n")
    rows = [
        {"file_name": "b.png", "text": "a moon"},
        {"file_name": "a.JPG", "text": "listed too"},
        {"file_name": "below/c.webp"},
    ]
    (images / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    assert caption(images) == {"a.JPG": "a red fox", "b.png": "a moon", "c.webp": None}
    before = scan(images)
    assert not before.captioned
    (images / "below" / "c.txt").write_text("a cat")
    assert caption(images)["c.webp"] == "a cat"
    assert scan(images).captioned
    assert scan(images).digest != before.digest


def test_an_empty_caption_is_none(images: Path) -> None:
    for name in ("a.txt", "b.txt", "below/c.txt"):
        (images / name).write_text("  \n")
    assert set(caption(images).values()) == {None}
    assert not scan(images).captioned


@pytest.mark.parametrize(
    "line", ['{"text": "x"}', "{", "3", '{"file_name": "b.png", "text": 3}', "[" * 99_999, '{"file_name": 3}']
)
def test_a_broken_list_of_captions_is_named(images: Path, line: str) -> None:
    (images / "metadata.jsonl").write_text(line)
    with pytest.raises(ConfigError, match=r"metadata\.jsonl:1 is no JSON object") as caught:
        scan(images)
    assert "\n" not in str(caught.value)


def test_a_caption_that_is_no_text_is_named(images: Path) -> None:
    (images / "a.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"the caption .*a\.txt is not UTF-8 text .*it is UTF-16"):
        scan(images)


def test_images_are_repeated_by_their_names(images: Path) -> None:
    recipe = FolderRecipe(path=images, repeats={"below/*": 3, "*.webp": 2, "b.*": 4})
    assert [sample.repeats for sample in samples(recipe, resolution=8)] == [1, 4, 3]


def test_a_pattern_without_images_is_an_error(images: Path) -> None:
    with pytest.raises(ConfigError, match=r"recipe\.repeats: no image in .* is named 'hands/\*'"):
        load(images, recipe={"kind": "folder", "path": str(images), "repeats": {"hands/*": 3}})


def test_exif_orientation_is_honoured(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6  # a quarter turn to the right makes it upright
    gradient(80, 40).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    upright = read_image(tmp_path / "turned.jpg")
    assert upright.size == (40, 80)
    expected = np.asarray(gradient(80, 40).rotate(-90, expand=True)).astype(int)
    assert np.abs(np.asarray(upright).astype(int) - expected).mean() < 3


@pytest.mark.parametrize("turn", range(1, 9))
def test_every_orientation_is_pillows(turn: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = turn
    gradient(80, 40).save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as opened:
        expected = ImageOps.exif_transpose(opened)
    assert np.array_equal(np.asarray(read_image(tmp_path / "turned.png")), np.asarray(expected))


def test_broken_exif_decides_nothing(tmp_path: Path) -> None:
    """Mutated blocks: whatever they say besides, an image that Pillow decodes is taken."""
    exif = Image.Exif()
    exif[ORIENTATION], exif[0x010E], exif[0x011A] = 6, "a fox", 72.0
    exif.get_ifd(0x8769)[0x9000] = b"0230"
    block, random = exif.tobytes(), Random(0)
    sizes = set()
    for number in range(200):
        broken = bytearray(block)
        for _ in range(random.randint(1, 6)):
            broken[random.randrange(6, len(broken))] = random.randrange(256)
        gradient(80, 40).save(tmp_path / f"{number}.jpg", exif=bytes(broken))
        sizes.add(read_image(tmp_path / f"{number}.jpg").size)
    assert sizes == {(80, 40), (40, 80)}


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "CMYK"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    suffix = "jpg" if mode == "CMYK" else "png"
    gradient(32, 32).convert("RGB").convert(mode).save(tmp_path / f"image.{suffix}")
    assert read_image(tmp_path / f"image.{suffix}").mode == "RGB"


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert read_image(tmp_path / "clear.png").getpixel((4, 4)) == (255, 255, 255)


def test_16_bits_are_scaled(tmp_path: Path) -> None:
    ramp_HW = np.linspace(0, 65535, 64)[None].repeat(32, axis=0)
    Image.fromarray(ramp_HW.astype(np.uint16)).save(tmp_path / "ramp.png")
    Image.fromarray(np.rint(ramp_HW / 257).astype(np.uint8)).save(tmp_path / "twin.png")
    assert read_image(tmp_path / "ramp.png") == read_image(tmp_path / "twin.png")
    assert np.asarray(read_image(tmp_path / "ramp.png")).mean() == pytest.approx(127.5, abs=1)


def test_what_is_no_training_image_is_refused_by_name(tmp_path: Path) -> None:
    frames = [gradient(16, 16), Image.new("RGB", (16, 16))]
    frames[0].save(tmp_path / "moving.png", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "moving.webp", save_all=True, append_images=frames[1:])
    gradient(1, 400).save(tmp_path / "line.png")
    gradient(16, 300).save(tmp_path / "strip.png")
    gradient(16, 16).save(tmp_path / "really.png", format="GIF")
    (tmp_path / "program.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) run"
    )
    for name, why in {
        "moving.png": "it is animated",
        "moving.webp": "it is animated",
        "line.png": "1 × 400 pixels; allowed",
        "strip.png": "16 × 300 pixels; allowed",
        "really.png": "its content is not PNG, JPEG or WEBP",
        "program.png": "its content is not PNG, JPEG or WEBP",
    }.items():
        with pytest.raises(ConfigError, match=f"{name} .*{why}"):
            read_image(tmp_path / name)


def png_that_says(width: int, height: int) -> bytes:
    head = struct.pack(">II5B", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def webp_that_says(width: int, height: int, kind: bytes) -> bytes:
    body = {
        b"VP8X": b"\0" * 4 + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little"),
        b"VP8L": b"\x2f" + ((width - 1) | (height - 1) << 14).to_bytes(4, "little") + b"\0" * 5,
        b"VP8 ": b"\0\0\0\x9d\x01\x2a" + struct.pack("<HH", width & 0x3FFF, height & 0x3FFF),
    }[kind]
    chunk = kind + struct.pack("<I", len(body)) + body
    return b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk


@pytest.mark.parametrize(
    "bomb",
    [
        png_that_says(20_000, 20_000),
        png_that_says(2**31 - 1, 2**31 - 1),
        *(webp_that_says(16_383, 16_383, kind) for kind in (b"VP8X", b"VP8L", b"VP8 ")),
    ],
)
def test_a_bomb_is_not_decoded(bomb: bytes, tmp_path: Path) -> None:
    file = tmp_path / f"bomb.{'webp' if bomb[:4] == b'RIFF' else 'png'}"
    file.write_bytes(bomb)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ConfigError, match=r"bomb\..*(more than 67,108,864|cannot be read)"):
        read_image(file)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


def test_webps_are_measured_as_pillow_does(tmp_path: Path) -> None:
    alpha = gradient(33, 21).convert("RGBA")
    alpha.putalpha(100)
    for name, image, how in (
        ("lossy", gradient(33, 21), {}),
        ("lossless", gradient(33, 21), {"lossless": True}),
        ("extended", alpha, {"exif": b"Exif\0\0"}),
    ):
        image.save(tmp_path / f"{name}.webp", **how)
        with (tmp_path / f"{name}.webp").open("rb") as stream:
            assert _webp_size(stream) == (33, 21)


def test_what_is_left_out_is_told(images: Path, tmp_path: Path) -> None:
    for name in ("old.bmp", "web.jfif", "scan.tif", "anim.gif", ".hidden.png"):
        (images / name).write_bytes(b"")
    outside = tmp_path / "outside"
    outside.mkdir()
    gradient(64, 64).save(outside / "d.png")
    (outside / "secret.txt").write_text("a secret")
    (images / "linked").symlink_to(outside)
    (images / "link.png").symlink_to(outside / "d.png")
    (images / "metadata.csv").write_text("file_name,text\n")
    (images / "metadata.jsonl").write_text(json.dumps({"file_name": "gone.png", "text": "x"}))
    assert [file.name for file in find_images(images)] == ["a.JPG", "b.png", "c.webp"]
    told = "\n".join(scan(images).left_out)
    for line in (
        "not of a format that is read: 4 (anim.gif, old.bmp, scan.tif, …)",
        "hidden: 1 (.hidden.png)",
        "links that lead out of the folder: 1 (link.png)",
        "linked folders: 1 (linked)",
        "lists of captions other than the folder's metadata.jsonl: 1 (metadata.csv)",
        "rows of metadata.jsonl without an image: 1 (gone.png)",
    ):
        assert line in told
    (images / "a.txt").symlink_to(outside / "secret.txt")
    with pytest.raises(ConfigError, match=r"a\.txt is a link that leads out of the folder"):
        scan(images)


def test_lists_of_captions_as_people_write_them(tmp_path: Path) -> None:
    composed = unicodedata.normalize("NFC", "café.png")
    for name in (unicodedata.normalize("NFD", composed), "b.png", "below/c.png", "d.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        gradient(16, 16).save(tmp_path / name)
    rows = [
        {"file_name": composed, "text": "one\u2028two"},
        {"file_name": "./b.png", "caption": "b"},
        {"file_name": "below\\c.png", "text": "c", "caption": "not this"},
        {"file_name": "d.png", "text": None},
    ]
    text = "\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (tmp_path / "metadata.jsonl").write_text(f"\ufeff{text}", encoding="utf-8", newline="")
    assert {unicodedata.normalize("NFC", name): text for name, text in caption(tmp_path).items()} == {
        composed: "one\u2028two",
        "b.png": "b",
        "c.png": "c",
        "d.png": None,
    }
    (tmp_path / "b.txt").write_text("\ufeffa fox", encoding="utf-8")
    assert caption(tmp_path)["b.png"] == "a fox"


def encoded(suffix: str) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, format="JPEG" if suffix == "jpg" else suffix.upper())
    return buffer.getvalue()


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
@pytest.mark.parametrize("damage", ["cut", "empty", "text"])
def test_a_broken_image_is_named(images: Path, suffix: str, damage: str) -> None:
    data = encoded(suffix)
    broken = {"cut": data[: len(data) // 2], "empty": b"", "text": b"hello"}
    (images / f"broken.{suffix}").write_bytes(broken[damage])
    with pytest.raises(ConfigError, match=rf"broken\.{suffix}") as caught:
        scan(images)
    assert "\n" not in str(caught.value)


def test_a_missing_or_empty_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere is not a folder"):
        scan(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"no images in .*allowed: \.png"):
        scan(tmp_path)


def test_images_changed_after_the_sweep_was_read_are_an_error(images: Path) -> None:
    recipe = FolderRecipe(path=images, digest=scan(images).digest)
    assert len(list(samples(recipe, resolution=16))) == 3
    gradient(10, 10).save(images / "new.png")
    with pytest.raises(ConfigError, match="have changed"):
        next(samples(recipe, resolution=16))


def test_a_png_with_a_wrong_checksum_is_refused(tmp_path: Path) -> None:
    """Pillow decodes such pixels as they come."""
    gradient(64, 64).save(tmp_path / "a.png")
    content = bytearray((tmp_path / "a.png").read_bytes())
    checksum = content.rindex(b"IEND") - 5  # the last byte of that of the pixels
    content[checksum] ^= 1
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(ConfigError, match=r"a\.png cannot be read as an image: .*IDAT"):
        read_image(tmp_path / "a.png")
