import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from harness.config.schema.metric import AestheticMetric, ClipScoreMetric, ImageStatsMetric, MetricConfig
from harness.errors import ModelError
from harness.metrics import metric_fingerprint


def test_the_fingerprint_follows_the_content_not_the_place(clip_folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(clip_folder, copy)
    here = metric_fingerprint(ClipScoreMetric(encoder=f"local-dir:{clip_folder}"))
    assert metric_fingerprint(ClipScoreMetric(encoder=f"local-dir:{copy}")) == here
    (copy / "README.md").write_text("a card")
    assert metric_fingerprint(ClipScoreMetric(encoder=f"local-dir:{copy}")) == here
    weights = copy / "open_clip_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert metric_fingerprint(ClipScoreMetric(encoder=f"local-dir:{copy}")) != here


def test_metrics_encoders_and_heads_differ(clip_folder: Path) -> None:
    clip = f"local-dir:{clip_folder}"
    configs: list[MetricConfig] = [
        ImageStatsMetric(kind="contrast"),
        ImageStatsMetric(kind="sharpness"),
        ClipScoreMetric(encoder="ViT-L-14-quickgelu/openai"),
        ClipScoreMetric(encoder="ViT-H-14/laion2b_s32b_b79k"),
        AestheticMetric(encoder="ViT-L-14-quickgelu/openai", head="laion"),
        AestheticMetric(encoder=clip, head="laion"),
        AestheticMetric(encoder=clip, head="emoji"),
    ]
    assert len({metric_fingerprint(config) for config in configs}) == len(configs)


def test_missing_weights_stop_a_sweep_before_it_starts(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is not an open_clip folder"):
        metric_fingerprint(ClipScoreMetric(encoder=f"local-dir:{tmp_path}"))


def test_a_new_definition_is_a_new_fingerprint(monkeypatch: pytest.MonkeyPatch) -> None:
    config = ImageStatsMetric(kind="contrast")
    before = metric_fingerprint(config)
    monkeypatch.setattr(ImageStatsMetric, "version", "2")
    assert metric_fingerprint(config) != before


def test_fingerprints_need_no_torch() -> None:
    code = (
        "import sys; from harness.metrics import metric_fingerprint; "
        "from harness.config.schema.metric import ImageStatsMetric; "
        "metric_fingerprint(ImageStatsMetric(kind='contrast')); "
        "print([m for m in ('torch', 'open_clip', 'pandas', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_checking_a_name_needs_no_torch() -> None:
    code = (
        "import sys; from harness.metrics import metric_fingerprint; "
        "from harness.config.schema.metric import ClipScoreMetric; "
        "metric_fingerprint(ClipScoreMetric(encoder='ViT-H-14/laion2b_s32b_b79k')); "
        "print([m for m in ('torch', 'open_clip') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    with pytest.raises(ModelError, match="open_clip knows no architecture 'ViT-H-15'"):
        metric_fingerprint(ClipScoreMetric(encoder="ViT-H-15/laion2b_s32b_b79k"))
