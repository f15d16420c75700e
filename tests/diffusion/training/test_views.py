import numpy as np
import pytest
import torch
from PIL import Image

from harness.diffusion.models.model import Model, Posterior
from harness.diffusion.training.data import (
    Posteriors,
    TrainingImage,
    View,
    center_view,
    cut,
    drawn_view,
    read_images,
    time_ids,
)
from harness.diffusion.training.noise import Part
from harness.errors import TrainingError
from tests.diffusion.training.runs import write_images


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> TrainingImage:
    folder = write_images(
        tmp_path_factory.mktemp("wide"), seed=0, count=1, size=(104, 64), original_size=(330, 200)
    )
    return read_images(folder, resolution=64)[0]


def views(image: TrainingImage, **how: object) -> list[View]:
    settings = {"crop": "center", "flip": False, **how}
    keys = [(0, Part.PICTURES, step, 0) for step in range(60)]
    return [drawn_view(image, resolution=64, key=key, **settings) for key in keys]  # type: ignore[arg-type]


def test_the_middle_is_seen_unless_told_otherwise(wide: TrainingImage) -> None:
    assert set(views(wide)) == {center_view(wide, resolution=64)} == {View(left=16, top=0, flip=False)}


def test_random_crops_reach_every_place_and_nothing_else(wide: TrainingImage) -> None:
    assert {view.left for view in views(wide, crop="random")} == {0, 8, 16, 24, 32, 40}
    assert {view.top for view in views(wide, crop="random")} == {0}


def test_half_of_the_rows_are_mirrored_whatever_their_crop(wide: TrainingImage) -> None:
    flipped = [view.flip for view in views(wide, flip=True)]
    assert 15 < sum(flipped) < 45
    assert [view.flip for view in views(wide, flip=True, crop="random")] == flipped
    lefts = [view.left for view in views(wide, crop="random")]
    assert [view.left for view in views(wide, flip=True, crop="random")] == lefts


def test_the_time_ids_say_what_the_row_sees(wide: TrainingImage) -> None:
    """Original height and width, the corner in the (mirrored) resized image, the target."""
    view = View(left=8, top=0, flip=True)
    assert time_ids(wide, view, resolution=64) == [200, 330, 0, 8, 64, 64]
    mirrored = np.asarray(wide.pixels())[:, ::-1]
    assert np.array_equal(np.asarray(cut(wide.pixels(), view, resolution=64)), mirrored[0:64, 8:72])


def test_each_view_is_encoded_once_and_as_the_model_does(wide: TrainingImage, tiny_model: Model) -> None:
    encoded: list[Image.Image] = []

    class Counting:
        resolution = tiny_model.resolution

        def encode_images(self, images: list[Image.Image]) -> Posterior:
            encoded.extend(images)
            return tiny_model.encode_images(images)

    posteriors = Posteriors(Counting())  # type: ignore[arg-type]
    asked = [View(left=0, top=0, flip=False), View(left=0, top=0, flip=True), View(left=8, top=0, flip=False)]
    first = [posteriors.of(wide, view) for view in asked]
    again = [posteriors.of(wide, view) for view in asked]
    assert len(encoded) == 3
    assert all(
        torch.equal(a, b)
        for one, other in zip(first, again, strict=True)
        for a, b in zip(one, other, strict=True)
    )
    expected = tiny_model.encode_images([cut(wide.pixels(), asked[1], resolution=64)])
    assert torch.equal(first[1][0], expected.mean_NChw[0])
    assert torch.equal(first[1][1], expected.std_NChw[0])
    assert first[0][0].dtype == torch.float32


def test_memory_is_bounded_and_what_is_dropped_is_encoded_again_alike(
    wide: TrainingImage, tiny_model: Model
) -> None:
    view = View(left=0, top=0, flip=False)
    large = Posteriors(tiny_model).of(wide, view)
    size = sum(tensor.nbytes for tensor in large)
    small = Posteriors(tiny_model, capacity=2 * size)
    for left in (0, 8, 16, 24):
        small.of(wide, View(left=left, top=0, flip=False))
    assert len(small._known) == 2
    assert all(torch.equal(a, b) for a, b in zip(small.of(wide, view), large, strict=True))


def test_a_vae_that_overflows_is_named(
    wide: TrainingImage, tiny_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    view = View(left=0, top=0, flip=False)
    overflowed = tiny_model.encode_images([cut(wide.pixels(), view, resolution=64)])
    overflowed.mean_NChw[0, 0, 0, 0] = torch.nan
    monkeypatch.setattr(tiny_model, "encode_images", lambda images: overflowed)
    with pytest.raises(TrainingError, match=r"000000\.png .*model\.vae"):
        Posteriors(tiny_model).of(wide, view)
