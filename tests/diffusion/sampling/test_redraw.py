"""A picture is drawn again from its file alone."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from harness.config.loading.tokens import model_digest
from harness.config.plan.plan import Cell, Draw, DrawAdapter, cells
from harness.config.schema.evaluation import Prompt
from harness.config.schema.model import EmojiModel
from harness.diffusion.models import load_model
from harness.diffusion.models.model import Model
from harness.diffusion.sampling.generate import Part, draw_cells
from harness.diffusion.sampling.png import HARNESS
from harness.diffusion.sampling.redraw import redraw
from harness.errors import ModelError, SpecError
from harness.store.workspace import Workspace
from tests.diffusion.adapters.adapters import random_adapter

PROMPTS = (Prompt(text="a (red)++ fox", split="test"), Prompt(text="a cat: café", split="test"))


@pytest.fixture(scope="module")
def emoji() -> Model:
    spec = EmojiModel()
    return load_model(spec.model_copy(update={"digest": model_digest(spec)}), device="cpu")


@pytest.fixture
def draw(emoji: Model) -> Draw:
    return Draw(
        draw_id="0123456789abcdef",
        arm="wrong",
        model=emoji.spec,
        negative="wrong",
        guidance=4.0,
        guidance_rescale=0.2,
        steps=6,
        scheduler="EulerAncestralDiscreteScheduler",
        size=None,
        refiner_start=0.6,
        adapters=(),
        merge=None,
    )


@pytest.fixture
def own(emoji: Model, tmp_path: Path) -> DrawAdapter:
    """An adapter of a training run, in the workspace `tmp_path / "work"`."""
    random_adapter(emoji, Workspace(tmp_path / "work").snapshot("abc", 100).path, seed=1)
    return DrawAdapter(
        run_id="abc", steps=100, weights="last", file=None, digest=None, scale=0.5, branch="negative"
    )


def wanted(draw: Draw) -> list[Cell]:
    return list(cells(draw, PROMPTS, (0, 7), "test"))


def drawn(draw: Draw, model: Model, workspace: Path, cells: list[Cell] | None = None) -> list[Path]:
    """The pictures of one batch, four without `cells`, where a workspace has them."""
    cells = wanted(draw) if cells is None else cells
    folder = workspace / "images" / draw.draw_id / "chunk"
    folder.mkdir(parents=True)
    places = Workspace(workspace)

    def path(adapter: DrawAdapter) -> Path:
        return adapter.file or places.snapshot(adapter.run_id or "", adapter.steps or 0).path

    draw_cells([Part(draw=draw, cells=cells, folder=folder)], model, path)
    return [folder / f"{cell.image_id}.png" for cell in cells]


def test_a_picture_of_a_batch_comes_out_the_same_up_to_rounding(draw: Draw, emoji: Model, tmp_path: Path):
    pictures = drawn(draw, emoji, tmp_path / "work")
    alone = tmp_path / "elsewhere" / "picture.png"  # the file alone, without workspace or table
    alone.parent.mkdir()
    shutil.move(pictures[3], alone)
    again = redraw(alone, workspace=None, output=tmp_path / "again.png")
    assert again.up_to_rounding and again.versions == {}


def test_a_picture_that_was_alone_comes_out_the_same_to_the_last_byte(
    draw: Draw, emoji: Model, tmp_path: Path
):
    picture = drawn(draw, emoji, tmp_path / "work", wanted(draw)[:1])[0]
    again = redraw(picture, workspace=None, output=tmp_path / "again.png")
    assert (again.equal, again.difference) == (True, 0)
    assert again.output.read_bytes() == picture.read_bytes()


def test_adapters_are_found_by_what_they_are(draw: Draw, own: DrawAdapter, emoji: Model, tmp_path: Path):
    given = random_adapter(emoji, tmp_path / "given", seed=2) / "pytorch_lora_weights.safetensors"
    file = replace(own, run_id=None, steps=None, file=given, digest="0" * 64, branch="both")
    picture = drawn(replace(draw, adapters=(own, file)), emoji, tmp_path / "work")[1]
    assert redraw(picture, workspace=None, output=tmp_path / "again.png").up_to_rounding
    moved = tmp_path / "moved.png"
    shutil.copy(picture, moved)
    with pytest.raises(ModelError, match=r"is not found; looked for it in .*abc-100.*Give the workspace"):
        redraw(moved, workspace=None, output=tmp_path / "again.png")
    shutil.move(given, tmp_path / given.name)  # beside the picture
    assert redraw(moved, workspace=tmp_path / "work", output=tmp_path / "again.png").up_to_rounding
    random_adapter(emoji, tmp_path, seed=3)
    with pytest.raises(ModelError, match="has other weights than the picture was drawn with"):
        redraw(moved, workspace=tmp_path / "work", output=tmp_path / "again.png")


def changed(picture: Path, target: Path, path: str, value: object) -> Path:
    """The picture with one fact of its text replaced."""
    from harness.diffusion.sampling import png

    with Image.open(picture) as image:
        image.load()
        about = json.loads(image.info[HARNESS])
        inner = about
        *heads, last = path.split(".")
        for head in heads:
            inner = inner[head]
        inner[last] = value
        png.save(image, target, {HARNESS: png.as_json(about)})
    return target


def test_it_says_when_a_picture_is_another(draw: Draw, emoji: Model, tmp_path: Path):
    picture = drawn(draw, emoji, tmp_path / "work")[0]
    other = changed(picture, tmp_path / "other.png", "cell.seed", 1)
    result = redraw(other, workspace=None, output=tmp_path / "again.png")
    assert not result.equal and not result.up_to_rounding and result.difference > 10
    older = changed(picture, tmp_path / "older.png", "versions.torch", "1.0")
    result = redraw(older, workspace=None, output=tmp_path / "again.png")
    assert result.up_to_rounding and result.versions["torch"][0] == "1.0"


def test_what_cannot_be_drawn_again_says_why(draw: Draw, emoji: Model, tmp_path: Path):
    again = tmp_path / "again.png"
    picture = drawn(draw, emoji, tmp_path / "work")[0]
    with pytest.raises(SpecError, match="is the picture itself"):
        redraw(picture, workspace=None, output=picture)
    with pytest.raises(SpecError, match="cannot be read as a picture"):
        redraw(tmp_path / "nothing.png", workspace=None, output=again)
    Image.open(picture).save(tmp_path / "bare.png")
    with pytest.raises(SpecError, match="does not say how it was made"):
        redraw(tmp_path / "bare.png", workspace=None, output=again)
    damaged = changed(picture, tmp_path / "damaged.png", "draw.model", {"kind": "emoji", "size": 3})
    with pytest.raises(SpecError, match="damaged, or of another version"):
        redraw(damaged, workspace=None, output=again)
    others = changed(picture, tmp_path / "others.png", "draw.model.digest", "0" * 64)
    with pytest.raises(ModelError, match="not those the picture was drawn with"):
        redraw(others, workspace=None, output=again)
    assert not again.exists()
