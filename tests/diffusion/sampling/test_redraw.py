"""An image is drawn again from its file alone."""

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.fuzz.images import IMAGES
from harness.config.loading.tokens import model_digest
from harness.config.plan.plan import Cell, ResolvedAdapter, ResolvedArm, cells
from harness.config.schema.evaluation import ApgGuider, PostConfig, Prompt
from harness.config.schema.model import EmojiModel
from harness.diffusion.degradations import degrade
from harness.diffusion.models import load_model
from harness.diffusion.models.model import Model
from harness.diffusion.sampling.generate import Part, generate_cells
from harness.diffusion.sampling.png import HARNESS, PARAMETERS
from harness.diffusion.sampling.redraw import redraw
from harness.errors import ConfigError, ModelError
from harness.store.workspace import Workspace
from tests.diffusion.adapters.adapters import random_adapter

PROMPTS = (Prompt(text="a (red)++ fox", split="test"), Prompt(text="a cat: café", split="test"))


@pytest.fixture(scope="module")
def emoji() -> Model:
    config = EmojiModel()
    return load_model(config.model_copy(update={"digest": model_digest(config)}), device="cpu")


@pytest.fixture
def arm(emoji: Model) -> ResolvedArm:
    return ResolvedArm(
        arm_id="0123456789abcdef",
        arm="wrong",
        model=emoji.config,
        negative="wrong",
        guidance=4.0,
        guidance_interval=(0.0, 0.7),
        guidance_rescale=0.2,
        guider=ApgGuider(momentum=-0.5),
        steps=6,
        scheduler="EulerAncestralDiscreteScheduler",
        size=None,
        noise="per_prompt",
        refiner_start=0.6,
        adapters=(),
        merge=None,
    )


@pytest.fixture
def own(emoji: Model, tmp_path: Path) -> ResolvedAdapter:
    """An adapter of a training run, in the workspace `tmp_path / "work"`."""
    random_adapter(emoji, Workspace(tmp_path / "work").checkpoint("abc", 100).path, seed=1)
    return ResolvedAdapter(
        run_id="abc",
        steps=100,
        weights="last",
        file=None,
        hub=None,
        digest=None,
        scale=0.5,
        branch="negative",
    )


def wanted(arm: ResolvedArm) -> list[Cell]:
    return list(cells(arm, PROMPTS, (0, 7), "test"))


def drawn(arm: ResolvedArm, model: Model, workspace: Path, cells: list[Cell] | None = None) -> list[Path]:
    """The images of one batch, four without `cells`, where a workspace has them."""
    cells = wanted(arm) if cells is None else cells
    folder = workspace / "images" / arm.arm_id / "chunk"
    folder.mkdir(parents=True)
    places = Workspace(workspace)

    def path(adapter: ResolvedAdapter) -> Path:
        return adapter.file or places.checkpoint(adapter.run_id or "", adapter.steps or 0).path

    generate_cells([Part(arm=arm, cells=cells, folder=folder)], model, path)
    return [folder / f"{cell.image_id}.png" for cell in cells]


def test_a_image_of_a_batch_comes_out_the_same_up_to_rounding(arm: ResolvedArm, emoji: Model, tmp_path: Path):
    images = drawn(arm, emoji, tmp_path / "work")
    alone = tmp_path / "elsewhere" / "image.png"  # the file alone, without workspace or table
    alone.parent.mkdir()
    shutil.move(images[3], alone)
    again = redraw(alone, workspace=None, output=tmp_path / "again.png")
    assert again.up_to_rounding and again.versions == {}


def test_a_image_that_was_alone_comes_out_the_same_to_the_last_byte(
    arm: ResolvedArm, emoji: Model, tmp_path: Path
):
    image = drawn(arm, emoji, tmp_path / "work", wanted(arm)[:1])[0]
    again = redraw(image, workspace=None, output=tmp_path / "again.png")
    assert (again.equal, again.difference) == (True, 0)
    assert again.output.read_bytes() == image.read_bytes()


def test_a_damage_is_done_to_the_finished_image_and_again_when_it_is_redrawn(
    arm: ResolvedArm, emoji: Model, tmp_path: Path
):
    """Noise: its numbers are those of the cell."""
    cell = wanted(arm)[:1]
    post = PostConfig(degrade="noise", severity=0.3)
    plain = drawn(arm, emoji, tmp_path / "plain", cell)[0]
    damaged = drawn(replace(arm, post=post), emoji, tmp_path / "damaged", cell)[0]
    with Image.open(plain) as image:
        rng = np.random.default_rng(cell[0].noise_seed)
        expected = degrade(image.convert("RGB"), "noise", severity=0.3, rng=rng)
    with Image.open(damaged) as image:
        assert image.tobytes() == expected.tobytes()
        assert "Degraded: noise 0.3" in image.info[PARAMETERS]
    again = redraw(damaged, workspace=None, output=tmp_path / "again.png")
    assert again.output.read_bytes() == damaged.read_bytes()


def test_adapters_are_found_by_what_they_are(
    arm: ResolvedArm, own: ResolvedAdapter, emoji: Model, tmp_path: Path
):
    given = random_adapter(emoji, tmp_path / "given", seed=2) / "pytorch_lora_weights.safetensors"
    file = replace(own, run_id=None, steps=None, file=given, digest="0" * 64, branch="both")
    image = drawn(replace(arm, adapters=(own, file)), emoji, tmp_path / "work")[1]
    assert redraw(image, workspace=None, output=tmp_path / "again.png").up_to_rounding
    moved = tmp_path / "moved.png"
    shutil.copy(image, moved)
    with pytest.raises(ModelError, match=r"is not found; looked for it in .*abc-100.*Give the workspace"):
        redraw(moved, workspace=None, output=tmp_path / "again.png")
    shutil.move(given, tmp_path / given.name)  # beside the image
    assert redraw(moved, workspace=tmp_path / "work", output=tmp_path / "again.png").up_to_rounding
    random_adapter(emoji, tmp_path, seed=3)
    with pytest.raises(ModelError, match="has other weights than the image was drawn with"):
        redraw(moved, workspace=tmp_path / "work", output=tmp_path / "again.png")


def changed(image: Path, target: Path, path: str, value: object) -> Path:
    """The image with one fact of its text replaced."""
    from harness.diffusion.sampling import png

    with Image.open(image) as opened:
        opened.load()
        about = json.loads(opened.info[HARNESS])
        inner = about
        *heads, last = path.split(".")
        for head in heads:
            inner = inner[head]
        inner[last] = value
        png.save(opened, target, {HARNESS: png.as_json(about)})
    return target


def test_it_says_when_a_image_is_another(arm: ResolvedArm, emoji: Model, tmp_path: Path):
    image = drawn(arm, emoji, tmp_path / "work")[0]
    other = changed(image, tmp_path / "other.png", "cell.noise_seed", 1)
    result = redraw(other, workspace=None, output=tmp_path / "again.png")
    assert not result.equal and not result.up_to_rounding and result.difference > 10
    older = changed(image, tmp_path / "older.png", "versions.torch", "1.0")
    result = redraw(older, workspace=None, output=tmp_path / "again.png")
    assert result.up_to_rounding and result.versions["torch"][0] == "1.0"


def test_what_cannot_be_drawn_again_says_why(arm: ResolvedArm, emoji: Model, tmp_path: Path):
    again = tmp_path / "again.png"
    image = drawn(arm, emoji, tmp_path / "work")[0]
    with pytest.raises(ConfigError, match="is the image itself"):
        redraw(image, workspace=None, output=image)
    with pytest.raises(ConfigError, match="cannot be read as an image"):
        redraw(tmp_path / "nothing.png", workspace=None, output=again)
    Image.open(image).save(tmp_path / "bare.png")
    with pytest.raises(ConfigError, match="does not say how it was made"):
        redraw(tmp_path / "bare.png", workspace=None, output=again)
    damaged = changed(image, tmp_path / "damaged.png", "arm.model", {"kind": "emoji", "size": 3})
    with pytest.raises(ConfigError, match="damaged, or of another version"):
        redraw(damaged, workspace=None, output=again)
    others = changed(image, tmp_path / "others.png", "arm.model.digest", "0" * 64)
    with pytest.raises(ModelError, match="not those the image was drawn with"):
        redraw(others, workspace=None, output=again)
    file = tmp_path / "hosts"
    file.write_bytes(b"127.0.0.1 localhost")
    stranger: dict[str, object] = {
        "run_id": None,
        "steps": None,
        "weights": "last",
        "file": str(file),
        "hub": None,
        "digest": None,
    }
    stranger |= {"scale": 1.0, "branch": "negative", "sha256": "0"}
    for path, value, why in [
        ("arm.guidance", "/etc/passwd", "guidance"),
        ("arm.guidance_interval", "ab", "guidance_interval"),
        ("arm.steps", 10**9, "steps"),
        ("arm.size", [2**20, 2**20], "size"),
        ("cell.noise_seed", -1, "noise_seed must be"),
        ("cell.prompt", "", "text"),
        ("versions", None, "NoneType"),
        ("arm.adapters", [{**stranger, "run_id": "../..", "steps": 1, "file": None}], "run_id and steps"),
        ("arm.adapters", [{**stranger, "branch": "all"}], "branch"),
    ]:
        odd = changed(image, tmp_path / "odd.png", path, value)
        with pytest.raises(ConfigError, match=f"is damaged, or of another version.*{why}"):
            redraw(odd, workspace=None, output=again)
    odd = changed(image, tmp_path / "odd.png", "arm.adapters", [stranger])
    with pytest.raises(ModelError, match=r"hosts is no whole \.safetensors file"):
        redraw(odd, workspace=None, output=again)
    for name in ("PNG bomb", "JPEG bomb", "WebP bomb", "EPS"):
        odd.write_bytes(IMAGES[name](random.Random(0)))
        with pytest.raises(ConfigError, match=r"odd\.png cannot be"):
            redraw(odd, workspace=None, output=again)
    assert not again.exists()
