import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from harness.config.loading.image_folder import find_images, read_image, scan
from harness.config.schema.recipe import FolderRecipe
from harness.diffusion.datasets.folder import fitted, samples
from harness.errors import ConfigError

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


@pytest.mark.parametrize("line", ['{"text": "x"}', "{", "3", '{"file_name": "b.png", "text": 3}'])
def test_a_broken_list_of_captions_is_named(images: Path, line: str) -> None:
    (images / "metadata.jsonl").write_text(line)
    with pytest.raises(ConfigError, match=r"metadata\.jsonl has a line") as caught:
        scan(images)
    assert "\n" not in str(caught.value)


def test_a_caption_that_is_no_text_is_named(images: Path) -> None:
    (images / "a.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"a\.txt cannot be read"):
        scan(images)


def test_images_are_repeated_by_their_names(images: Path) -> None:
    recipe = FolderRecipe(path=images, repeats={"below/*": 3, "*.webp": 2, "b.*": 4})
    assert [sample.repeats for sample in samples(recipe, resolution=8)] == [1, 4, 3]


def test_a_pattern_without_images_is_an_error(images: Path) -> None:
    with pytest.raises(ConfigError, match=r"recipe\.repeats: no image in .* is named 'hands/\*'"):
        next(samples(FolderRecipe(path=images, repeats={"hands/*": 3}), resolution=8))


def test_exif_orientation_is_honoured(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6  # a quarter turn to the right makes it upright
    gradient(80, 40).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    upright = read_image(tmp_path / "turned.jpg")
    assert upright.size == (40, 80)
    expected = np.asarray(gradient(80, 40).rotate(-90, expand=True)).astype(int)
    assert np.abs(np.asarray(upright).astype(int) - expected).mean() < 3


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "CMYK"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    suffix = "jpg" if mode == "CMYK" else "png"
    gradient(32, 32).convert("RGB").convert(mode).save(tmp_path / f"image.{suffix}")
    assert read_image(tmp_path / f"image.{suffix}").mode == "RGB"


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert read_image(tmp_path / "clear.png").getpixel((4, 4)) == (255, 255, 255)


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
