import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from harness.diffusion.adapters.adapter import Verbatim
from harness.diffusion.training.data import caption_of, held_out, read_images
from harness.errors import ArtifactError, TrainingError
from tests.diffusion.training.runs import WORDS, write_images

PICTURES = 5


def test_images_come_in_order_with_what_is_known_of_them(tmp_path: Path) -> None:
    folder = write_images(tmp_path, seed=0, size=(96, 64), original_size=(300, 200), repeats=[1, 2, 1, 3, 1])
    read = read_images(folder, resolution=64)
    assert [image.pixels().tobytes() for image in read] == [
        Image.open(folder / "images" / f"{index:06d}.png").tobytes() for index in range(PICTURES)
    ]
    assert [image.caption for image in read] == list(WORDS)
    assert [image.repeats for image in read] == [1, 2, 1, 3, 1]
    assert {(p.width, p.height, p.original_width, p.original_height) for p in read} == {(96, 64, 300, 200)}


def damage_image(folder: Path) -> None:
    Image.new("RGB", (64, 64)).save(folder / "images" / "000002.png")


def cut_image(folder: Path) -> None:
    file = folder / "images" / "000002.png"
    file.write_bytes(file.read_bytes()[:-9])


def lose_key(folder: Path) -> None:
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "images/000000.png"}) + "\n")


DAMAGES = {
    "image replaced": (damage_image, "000002.png"),
    "image cut": (cut_image, "000002.png"),
    "image lost": (lambda folder: (folder / "images" / "000001.png").unlink(), "000001.png"),
    "metadata lost": (lambda folder: (folder / "metadata.jsonl").unlink(), "metadata.jsonl"),
    "metadata empty": (lambda folder: (folder / "metadata.jsonl").write_text(""), "empty"),
    "metadata cut": (lambda folder: (folder / "metadata.jsonl").write_text('{"file_na'), "damaged"),
    "metadata short of a key": (lose_key, "sha256"),
    "metadata of another kind": (lambda folder: (folder / "metadata.jsonl").write_text("3\n"), "damaged"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_dataset_is_a_stage_error(images: Path, tmp_path: Path, name: str) -> None:
    folder = Path(shutil.copytree(images, tmp_path / "data"))
    damage, named = DAMAGES[name]
    damage(folder)
    with pytest.raises(ArtifactError, match=named) as caught:
        read_images(folder, resolution=64)
    assert "delete it" in str(caught.value)


def test_images_of_another_resolution_are_a_stage_error(images: Path) -> None:
    with pytest.raises(ArtifactError, match="64 × 64 px; the model needs 128"):
        read_images(images, resolution=128)


def test_a_image_replaced_while_training_is_a_stage_error(images: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(images, tmp_path / "data"))
    read = read_images(folder, resolution=64)
    damage_image(folder)
    with pytest.raises(ArtifactError, match=r"000002\.png is not the image that was written"):
        read[2].pixels()


def test_held_out_images_are_not_trained_on(images: Path) -> None:
    read = read_images(images, resolution=64)
    trained, kept = held_out(read, 2)
    assert sorted(p.file.name for p in [*trained, *kept]) == [p.file.name for p in read]
    assert len(kept) == 2
    assert held_out(read, 0) == (read, [])
    with pytest.raises(TrainingError, match=r"training\.holdout: 5 .* of 5 images .* at most 4"):
        held_out(read, 5)


def test_a_prompt_takes_in_the_images_own_caption(images: Path, tmp_path: Path) -> None:
    image = read_images(images, resolution=64)[1]
    assert caption_of(image, "wrong") == "wrong"
    assert caption_of(image, "wrong, {caption}") == Verbatim("wrong, cat") != "wrong, cat"
    folder = Path(shutil.copytree(images, tmp_path / "data"))
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    (folder / "metadata.jsonl").write_text("".join(json.dumps({**r, "caption": None}) + "\n" for r in rows))
    with pytest.raises(TrainingError, match=r"needs a caption for 000000\.png"):
        caption_of(read_images(folder, resolution=64)[0], "wrong, {caption}")
