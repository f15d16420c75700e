import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
from PIL import Image

from harness.errors import StageError, TrainingError
from harness.models.model import Model, Posterior
from harness.training.data import Batches, counter_generator, encode_pictures, picture_of, read_pictures

PICTURES = 5


def batches(*, seed: int = 0, rows_per_step: int = 4, pictures: int = PICTURES) -> Batches:
    generator = torch.Generator().manual_seed(1)
    mean, std = torch.randn((2, pictures, 4, 8, 8), generator=generator)
    return Batches(
        posterior=Posterior(mean_NChw=mean, std_NChw=std.abs()),
        alphas_cumprod=torch.linspace(1, 0, 1000),
        prediction_type="v_prediction",
        seed=seed,
        rows_per_step=rows_per_step,
    )


def test_each_pass_shows_every_picture_once_in_an_order_of_its_own() -> None:
    orders = [
        [picture_of(place, seed=0, pictures=30) for place in range(30 * e, 30 * e + 30)] for e in range(3)
    ]
    assert all(sorted(order) == list(range(30)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3


def test_a_batch_larger_than_the_dataset_shows_pictures_evenly() -> None:
    assert Counter(picture_of(place, seed=3, pictures=3) for place in range(12)) == {0: 4, 1: 4, 2: 4}


def test_a_rows_noise_does_not_depend_on_its_neighbours() -> None:
    whole = batches().batch(step=7, rows=range(4))
    for row in range(4):
        alone = batches().batch(step=7, rows=range(row, row + 1))
        assert torch.equal(alone.noisy_BChw[0], whole.noisy_BChw[row])
        assert torch.equal(alone.target_BChw[0], whole.target_BChw[row])
        assert alone.timesteps_B[0] == whole.timesteps_B[row]


def test_noise_depends_on_seed_step_and_row() -> None:
    rows = [
        batches(seed=seed, pictures=1)
        .batch(step=step, rows=range(row, row + 1))
        .target_BChw.numpy()
        .tobytes()
        for seed in range(2)
        for step in (1, 2)
        for row in range(2)
    ]
    assert len(set(rows)) == 8


def test_the_posterior_is_sampled_anew_each_time_a_picture_comes_up() -> None:
    made = batches(pictures=1, rows_per_step=1)
    drawn = Batches(**{**vars(made), "alphas_cumprod": torch.ones(1000)})  # no diffusion noise: x0 itself
    x0 = torch.stack([drawn.batch(step=step, rows=range(1)).noisy_BChw[0] for step in range(1, 401)])
    torch.testing.assert_close(x0.mean(dim=0), made.posterior.mean_NChw[0], atol=0.6, rtol=0)
    torch.testing.assert_close(x0.std(dim=0), made.posterior.std_NChw[0], atol=0.05, rtol=0.2)


def test_timesteps_cover_the_whole_schedule_evenly() -> None:
    made = batches(rows_per_step=8)
    timesteps = torch.cat([made.batch(step=step, rows=range(8)).timesteps_B for step in range(1, 501)])
    assert timesteps.min() < 10
    assert timesteps.max() > 989
    assert timesteps.float().mean() == pytest.approx(499.5, abs=15)


def test_the_last_timestep_of_zero_terminal_snr_is_trainable() -> None:
    made = Batches(**{**vars(batches()), "alphas_cumprod": torch.zeros(1)})
    batch = made.batch(step=1, rows=range(4))
    assert batch.noisy_BChw.isfinite().all()
    assert batch.target_BChw.isfinite().all()


def test_generators_of_neighbouring_keys_are_unrelated() -> None:
    keys = [(0, 1, 2), (0, 12), (1, 0, 2), (0, 1, 3), (2**62, 1, 2)]
    assert len({counter_generator(*key).initial_seed() for key in keys}) == len(keys)
    drawn = torch.stack([torch.randn(4096, generator=counter_generator(0, step, 0)) for step in range(20)])
    assert (torch.corrcoef(drawn) - torch.eye(20)).abs().max() < 0.08


def test_pictures_come_in_order(pictures: Path) -> None:
    read = read_pictures(pictures, resolution=64)
    assert [image.tobytes() for image in read] == [
        Image.open(pictures / "images" / f"{index:06d}.png").tobytes() for index in range(PICTURES)
    ]


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


def test_pictures_are_encoded_to_the_models_posterior(pictures: Path, tiny_model: Model) -> None:
    posterior = encode_pictures(read_pictures(pictures, resolution=64), tiny_model)
    assert posterior.mean_NChw.shape == posterior.std_NChw.shape == (PICTURES, 8, 8, 8)
    assert posterior.mean_NChw.dtype == torch.float32
    assert (posterior.std_NChw > 0).all()


def test_a_vae_that_overflows_is_named(
    pictures: Path, tiny_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = read_pictures(pictures, resolution=64)
    overflowed = tiny_model.encode_images(images)
    overflowed.mean_NChw[3, 0, 0, 0] = torch.nan
    monkeypatch.setattr(tiny_model, "encode_images", lambda images: overflowed)
    with pytest.raises(TrainingError, match=r"picture 3 .*model\.vae"):
        encode_pictures(images, tiny_model)
