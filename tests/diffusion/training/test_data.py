import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from harness.diffusion.training.data import caption_of, held_out, read_pictures
from harness.errors import StageError, TrainingError
from tests.diffusion.training.runs import WORDS, write_pictures

PICTURES = 5


def test_pictures_come_in_order_with_what_is_known_of_them(tmp_path: Path) -> None:
    folder = write_pictures(
        tmp_path, seed=0, size=(96, 64), original_size=(300, 200), repeats=[1, 2, 1, 3, 1]
    )
    read = read_pictures(folder, resolution=64)
    assert [picture.pixels().tobytes() for picture in read] == [
        Image.open(folder / "images" / f"{index:06d}.png").tobytes() for index in range(PICTURES)
    ]
    assert [picture.caption for picture in read] == list(WORDS)
    assert [picture.repeats for picture in read] == [1, 2, 1, 3, 1]
    assert {(p.width, p.height, p.original_width, p.original_height) for p in read} == {(96, 64, 300, 200)}


def damage_picture(folder: Path) -> None:
    Image.new("RGB", (64, 64)).save(folder / "images" / "000002.png")


def cut_picture(folder: Path) -> None:
    file = folder / "images" / "000002.png"
    file.write_bytes(file.read_bytes()[:-9])


def lose_key(folder: Path) -> None:
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "images/000000.png"}) + "\n")


DAMAGES = {
    "picture replaced": (damage_picture, "000002.png"),
    "picture cut": (cut_picture, "000002.png"),
    "picture lost": (lambda folder: (folder / "images" / "000001.png").unlink(), "000001.png"),
    "metadata lost": (lambda folder: (folder / "metadata.jsonl").unlink(), "metadata.jsonl"),
    "metadata empty": (lambda folder: (folder / "metadata.jsonl").write_text(""), "empty"),
    "metadata cut": (lambda folder: (folder / "metadata.jsonl").write_text('{"file_na'), "damaged"),
    "metadata short of a key": (lose_key, "sha256"),
    "metadata of another kind": (lambda folder: (folder / "metadata.jsonl").write_text("3\n"), "damaged"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_dataset_is_a_stage_error(pictures: Path, tmp_path: Path, name: str) -> None:
    folder = Path(shutil.copytree(pictures, tmp_path / "data"))
    damage, named = DAMAGES[name]
    damage(folder)
    with pytest.raises(StageError, match=named) as caught:
        read_pictures(folder, resolution=64)
    assert "delete it" in str(caught.value)


def test_pictures_of_another_resolution_are_a_stage_error(pictures: Path) -> None:
    with pytest.raises(StageError, match="64 × 64 px; the model needs 128"):
        read_pictures(pictures, resolution=128)


def test_a_picture_replaced_while_training_is_a_stage_error(pictures: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(pictures, tmp_path / "data"))
    read = read_pictures(folder, resolution=64)
    damage_picture(folder)
    with pytest.raises(StageError, match=r"000002\.png is not the picture that was written"):
        read[2].pixels()


def test_held_out_pictures_are_not_trained_on(pictures: Path) -> None:
    read = read_pictures(pictures, resolution=64)
    trained, kept = held_out(read, 2)
    assert sorted(p.file.name for p in [*trained, *kept]) == [p.file.name for p in read]
    assert len(kept) == 2
    assert held_out(read, 0) == (read, [])
    with pytest.raises(TrainingError, match=r"training\.holdout: 5 .* of 5 pictures .* at most 4"):
        held_out(read, 5)


def test_a_prompt_takes_in_the_pictures_own_caption(pictures: Path, tmp_path: Path) -> None:
    picture = read_pictures(pictures, resolution=64)[1]
    assert caption_of(picture, "wrong") == "wrong"
    assert caption_of(picture, "wrong, {caption}") == "wrong, cat"
    folder = Path(shutil.copytree(pictures, tmp_path / "data"))
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    (folder / "metadata.jsonl").write_text("".join(json.dumps({**r, "caption": None}) + "\n" for r in rows))
    with pytest.raises(TrainingError, match=r"needs a caption for 000000\.png"):
        caption_of(read_pictures(folder, resolution=64)[0], "wrong, {caption}")
