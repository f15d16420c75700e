"""Metrics of a generated image and its prompt. A metric never sees a model, an arm or a trial."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.config.schema.metric import (
    AestheticMetric,
    ClipIqaMetric,
    ClipScoreMetric,
    CommandMetric,
    ImageStatsMetric,
    LegibilityMetric,
    MetricConfig,
    PreferenceMetric,
)
from harness.metrics.weights import encoder_folder, metric_fingerprint

if TYPE_CHECKING:
    from harness.metrics.encoder import Encoder
    from harness.metrics.metric import Metric
    from harness.metrics.score import Scorer


__all__ = ["build_metrics", "ensure_weights", "metric_fingerprint"]


def ensure_weights(configs: Sequence[MetricConfig]) -> None:
    """Find every metric's weights, and fetch those that open_clip has by name, before anything is trained.

    Raises ModelError where weights are missing and cannot be fetched.
    """
    for config in configs:
        metric_fingerprint(config)
    embedding = [c for c in configs if isinstance(c, ClipScoreMetric | AestheticMetric | ClipIqaMetric)]
    for name in sorted({config.encoder for config in embedding}):
        if encoder_folder(name) is not None:
            continue
        from harness.metrics.encoder import fetch

        fetch(name)


def build_metrics(configs: Sequence[MetricConfig], *, device: str | None = None) -> "Scorer":
    """The scorer of these metrics; each encoder is loaded once. `device` null: CUDA where there is one.

    Raises ModelError where weights are missing or do not fit.
    """
    from harness.metrics.score import Scorer, default_device

    encoders: dict[str, Encoder] = {}

    def encoder(name: str) -> "Encoder":
        from harness.metrics.encoder import Encoder

        if name not in encoders:
            encoders[name] = Encoder(name, device=device or default_device())
        return encoders[name]

    def build(config: MetricConfig) -> "Metric":
        match config:
            case ClipScoreMetric():
                from harness.metrics.clip_score import ClipScore

                return ClipScore(encoder(config.encoder))
            case PreferenceMetric():
                from harness.metrics.clip_score import Preference

                return Preference(config.kind, encoder(f"{config.kind}:{config.weights}"))
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
