"""Metrics of a generated image and its prompt. A metric never sees a model, an arm or a trial."""

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

from harness.config.schema.metric import (
    AestheticMetric,
    ClipIqaMetric,
    ClipScoreMetric,
    CommandMetric,
    DiversityMetric,
    DriftMetric,
    ImageStatsMetric,
    LegibilityMetric,
    MetricConfig,
    PreferenceMetric,
)
from harness.metrics.weights import LITE0, encoder_folder, metric_fingerprint

if TYPE_CHECKING:
    from harness.metrics.encoder import Encoder
    from harness.metrics.metric import ImageEncoder, Metric
    from harness.metrics.score import Scorer


__all__ = ["build_metrics", "ensure_weights", "metric_fingerprint"]


@cache  # a sweep asks before each of its stages
def ensure_weights(configs: tuple[MetricConfig, ...]) -> None:
    """Find every metric's weights, and fetch those that open_clip has by name, before anything is trained.

    A command is started once, without images. Raises ModelError where weights are missing and cannot be
    fetched, or a command fails.
    """
    for config in configs:
        metric_fingerprint(config)
        if isinstance(config, CommandMetric):
            from harness.metrics.command import Command
            from harness.metrics.metric import Batch

            Command(config).measure(Batch([], []))
    with_encoder = ClipScoreMetric | AestheticMetric | ClipIqaMetric | DriftMetric | DiversityMetric
    names = {config.encoder for config in configs if isinstance(config, with_encoder)}
    for name in sorted(names - {LITE0}):
        if encoder_folder(name) is not None:
            continue
        from harness.metrics.encoder import fetch

        fetch(name)


def build_metrics(configs: Sequence[MetricConfig], *, device: str | None = None) -> "Scorer":
    """The scorer of these metrics; each encoder is loaded once. `device` null: CUDA where there is one.

    Raises ModelError where weights are missing or do not fit.
    """
    from harness.metrics.score import Scorer, default_device

    on = device or default_device()

    @cache
    def encoder(name: str) -> "Encoder":
        from harness.metrics.encoder import Encoder

        return Encoder(name, device=on)

    @cache
    def image_encoder(name: str) -> "ImageEncoder":
        from harness.metrics.encoder import ImageNetEncoder

        return ImageNetEncoder(device=on) if name == LITE0 else encoder(name)

    def build(config: MetricConfig) -> "Metric":
        match config:
            case ClipScoreMetric():
                from harness.metrics.clip_score import ClipScore

                return ClipScore(encoder(config.encoder))
            case PreferenceMetric():
                from harness.metrics.clip_score import Preference

                return Preference(config.kind, encoder(f"{config.kind}:{config.weights}"))
            case DriftMetric() | DiversityMetric():
                from harness.metrics.metric import Embedding

                return Embedding(image_encoder(config.encoder))
            case LegibilityMetric():
                from harness.metrics.legibility import Legibility

                return Legibility()
            case CommandMetric():
                from harness.metrics.command import Command

                return Command(config)
            case ClipIqaMetric():
                from harness.metrics.clip_score import ClipIqa

                return ClipIqa(encoder(config.encoder), config.pair)
            case AestheticMetric():
                from harness.metrics.aesthetic import Aesthetic, load_head

                return Aesthetic(encoder(config.encoder), load_head(config.head))
            case ImageStatsMetric():
                from harness.metrics.image_stats import Guard

                return Guard(config.kind)

    return Scorer([build(config) for config in configs])
