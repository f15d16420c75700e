"""The scorers on a CUDA device that is not there; see `tests/fake_cuda.py`."""

from pathlib import Path

import torch

from harness.config.schema.metric import AestheticMetric, ClipScoreMetric, ImageStatsMetric, MetricConfig
from harness.metrics import build_metrics
from harness.metrics.encoder import Encoder
from harness.metrics.metric import Batch
from tests.fake_cuda import CUDA, fake_cuda, is_fake
from tests.metrics.test_encoder import images
from tests.metrics.tiny import CONTEXT, WIDTH


def test_images_and_prompts_are_embedded_on_the_device_in_parts(clip_folder: Path) -> None:
    long = " ".join(["red"] * CONTEXT)
    with fake_cuda() as cuda:
        encoder = Encoder(f"local-dir:{clip_folder}", device=CUDA)
        assert all(is_fake(parameter) for parameter in encoder._model.parameters())
        cuda.waits.clear()
        embeddings = encoder.embed_images(images(33))
        assert len([wait for wait in cuda.waits if "_to_copy" in wait]) == 2, "32 at once, and the last"
        prompts, cut = encoder.embed_prompts(["red fox", long])
    for found, rows in ((embeddings, 33), (prompts, 2)):
        assert found.shape == (rows, WIDTH) and found.dtype == torch.float32 and not is_fake(found)
    assert cut == [False, True]


def test_every_metric_measures_on_the_device() -> None:
    configs: list[MetricConfig] = [
        ClipScoreMetric(encoder="emoji"),
        AestheticMetric(encoder="emoji", head="emoji"),
        ImageStatsMetric(kind="sharpness"),
    ]
    with fake_cuda():
        scorer = build_metrics(configs, device=CUDA)
        batch = Batch(images(2), ["a fox", "a car"])
        measured = [metric.measure(batch) for metric in scorer.metrics]
    assert all(found.value is not None for of_metric in measured for found in of_metric)
