from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from harness.config.schema.training import TimestepConfig, TrainingConfig
from harness.diffusion.training.batches import Noising, Source, drawn_timestep
from harness.diffusion.training.data import TrainingImage, View
from harness.diffusion.training.noise import Part, min_snr_weight


class FixedPosteriors:
    """A posterior for each image, without a VAE."""

    std: ClassVar[float] = 0.5

    def of(self, image: TrainingImage, view: View) -> tuple[torch.Tensor, torch.Tensor]:
        mean_Chw = torch.randn((4, 8, 8), generator=torch.Generator().manual_seed(int(image.sha256)))
        return mean_Chw, torch.full_like(mean_Chw, self.std)


def image(place: int, *, repeats: int = 1, caption: str = "fox") -> TrainingImage:
    return TrainingImage(
        file=Path(f"{place}.png"),
        sha256=str(place),
        width=96,
        height=64,
        original_width=300,
        original_height=200,
        caption=caption,
        repeats=repeats,
    )


def source(*, count: int = 5, part: Part = Part.PICTURES, weight: float = 1.0, **training: Any) -> Source:
    config = TrainingConfig(**training)
    return Source(
        images=[image(place, repeats=1 + 2 * (place == 0)) for place in range(count)],
        part=part,
        prompt=config.prompt,
        training=config,
        resolution=64,
        caption_dropout=config.caption_dropout,
        weight=weight,
    )


def noising(**settings: Any) -> Noising:
    return Noising(
        **{
            "posteriors": FixedPosteriors(),
            "alphas_cumprod": torch.linspace(0.999, 0, 1000),
            "prediction_type": "v_prediction",
            "resolution": 64,
            **settings,
        }
    )


def rows_of(made: Source, *, step: int = 7, rows: range = range(4)) -> list[Any]:
    return made.rows(step=step, rows=rows, rows_per_step=4)


def test_a_rows_numbers_do_not_depend_on_its_neighbours() -> None:
    made = source(crop="random", flip=True, caption_dropout=0.5)
    whole = noising(noise_offset=0.1, min_snr_gamma=5.0).batch(rows_of(made))
    for row in range(4):
        alone = noising(noise_offset=0.1, min_snr_gamma=5.0).batch(rows_of(made, rows=range(row, row + 1)))
        for name in ("noisy_BChw", "target_BChw", "timesteps_B", "time_ids_B6", "weight_B"):
            assert torch.equal(getattr(alone, name)[0], getattr(whole, name)[row]), name
        assert alone.captions == whole.captions[row : row + 1]


def test_noise_depends_on_seed_step_row_and_part() -> None:
    targets = {
        noising()
        .batch(rows_of(source(count=1, seed=seed, part=part), step=step, rows=range(row, row + 1)))
        .target_BChw.numpy()
        .tobytes()
        for seed in range(2)
        for step in (1, 2)
        for row in range(2)
        for part in (Part.PICTURES, Part.PRIOR)
    }
    assert len(targets) == 16


@pytest.mark.parametrize("change", [{"crop": "random"}, {"flip": True}, {"caption_dropout": 0.5}])
def test_switching_one_draw_on_leaves_the_others_alone(change: dict[str, Any]) -> None:
    plain, changed = (noising().batch(rows_of(source(**training))) for training in ({}, change))
    assert torch.equal(plain.noisy_BChw, changed.noisy_BChw)
    assert torch.equal(plain.timesteps_B, changed.timesteps_B)


def test_images_come_up_as_often_as_they_are_repeated() -> None:
    seen = [row.image.sha256 for step in range(1, 8) for row in rows_of(source(), step=step)]
    assert Counter(seen) == {"0": 12, "1": 4, "2": 4, "3": 4, "4": 4}  # 7 steps of 4 rows: 4 passes of 7


def test_captions_are_dropped_in_their_share() -> None:
    captions = [
        row.caption
        for step in range(1, 101)
        for row in rows_of(source(prompt="wrong {caption}", caption_dropout=0.3), step=step)
    ]
    assert {str(caption) for caption in captions} == {"", "wrong fox"}
    assert captions.count("") == pytest.approx(120, abs=30)


def test_the_posterior_is_sampled_anew_each_time_a_image_comes_up() -> None:
    plain = noising(alphas_cumprod=torch.ones(1000))  # no diffusion noise: x0 itself
    steps = range(1, 401)
    x0 = torch.stack(
        [plain.batch(rows_of(source(count=1), step=step, rows=range(1))).noisy_BChw[0] for step in steps]
    )
    mean_Chw, std_Chw = FixedPosteriors().of(image(0), View(left=0, top=0, flip=False))
    torch.testing.assert_close(x0.mean(dim=0), mean_Chw, atol=0.15, rtol=0)
    torch.testing.assert_close(x0.std(dim=0), std_Chw, atol=0.12, rtol=0)


def timesteps(**config: Any) -> torch.Tensor:
    drawn = [
        drawn_timestep(TimestepConfig(**config), key=(0, Part.PICTURES, step, 0)) for step in range(4000)
    ]
    return torch.tensor(drawn, dtype=torch.float32)


def test_timesteps_cover_the_whole_schedule_evenly() -> None:
    drawn = timesteps()
    assert drawn.min() < 3
    assert drawn.max() > 996
    assert drawn.mean() == pytest.approx(499.5, abs=15)


@pytest.mark.parametrize("distribution", ["uniform", "logit_normal"])
def test_timesteps_stay_in_their_range_both_ends_included(distribution: str) -> None:
    drawn = timesteps(distribution=distribution, lowest=300, highest=304)
    assert set(drawn.tolist()) == {300, 301, 302, 303, 304}


def test_logit_normal_timesteps_have_their_quantiles() -> None:
    drawn = timesteps(distribution="logit_normal", mean=1.0, deviation=0.5) / 1000
    normal = torch.special.ndtri(torch.tensor([0.1, 0.5, 0.9]))
    expected = torch.sigmoid(1.0 + 0.5 * normal)
    torch.testing.assert_close(drawn.quantile(torch.tensor([0.1, 0.5, 0.9])), expected, atol=0.015, rtol=0)


def test_the_noise_offset_is_common_to_a_channel() -> None:
    rows = rows_of(source())
    settings = {"prediction_type": "epsilon"}
    plain = noising(**settings).batch(rows).target_BChw
    offset = noising(**settings, noise_offset=0.3).batch(rows).target_BChw - plain
    torch.testing.assert_close(offset, offset.mean(dim=(2, 3), keepdim=True).expand(offset.shape))
    assert len({round(float(x), 4) for x in offset.mean(dim=(2, 3)).flatten()}) == 16
    assert offset.std() == pytest.approx(0.3, rel=0.6)


def test_weights_are_of_the_source_and_of_min_snr() -> None:
    rows = [*rows_of(source()), *rows_of(source(part=Part.PRIOR, weight=0.25))]
    assert noising().batch(rows).weight_B.tolist() == [1, 1, 1, 1, 0.25, 0.25, 0.25, 0.25]
    made = noising(min_snr_gamma=2.0)
    batch = made.batch(rows)
    snr_B = min_snr_weight("v_prediction", alpha_bar_B=made.alphas_cumprod[batch.timesteps_B], gamma=2.0)
    assert torch.equal(batch.weight_B[4:], 0.25 * snr_B[4:])


def test_class_images_keep_their_own_size_and_crop() -> None:
    """diffusers' script gives them the size and crop of the image beside them."""
    other = Source(
        images=[
            TrainingImage(
                file=Path("class.png"),
                sha256="9",
                width=64,
                height=128,
                original_width=70,
                original_height=140,
                caption=None,
                repeats=1,
            )
        ],
        part=Part.PRIOR,
        prompt="a fox",
        training=TrainingConfig(),
        resolution=64,
    )
    batch = noising().batch([*rows_of(source(), rows=range(1)), *rows_of(other, rows=range(1))])
    assert batch.time_ids_B6.tolist() == [[200, 300, 0, 16, 64, 64], [140, 70, 32, 0, 64, 64]]


def test_the_last_timestep_of_zero_terminal_snr_is_trainable() -> None:
    batch = noising(alphas_cumprod=torch.zeros(1000), min_snr_gamma=5.0).batch(rows_of(source()))
    assert all(t.isfinite().all() for t in (batch.noisy_BChw, batch.target_BChw, batch.weight_B))
