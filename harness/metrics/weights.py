"""Where a scorer's weights are on this machine, and their hash. `harness check` uses it: no torch."""

import hashlib
from functools import lru_cache
from pathlib import Path

from harness.config.schema.base import fingerprint
from harness.config.schema.metric import AestheticMetric, ClipScoreMetric, ImageStatsMetric, MetricConfig
from harness.errors import ModelError

EMBEDDED = Path(__file__).parent / "emoji"
LOCAL_DIR = "local-dir:"


def encoder_folder(encoder: str) -> Path | None:
    """The folder an encoder is loaded from; null where open_clip fetches it by name.

    Raises ModelError for a folder that does not exist or is not open_clip's.
    """
    if encoder == "emoji":
        folder = EMBEDDED / "clip"
    elif encoder.startswith(LOCAL_DIR):
        folder = Path(encoder.removeprefix(LOCAL_DIR)).expanduser()
    else:
        return None
    if not (folder / "open_clip_config.json").is_file():
        raise ModelError(
            f"encoder {encoder!r}: {folder} is not an open_clip folder (open_clip_config.json and "
            "open_clip_model.safetensors); allowed: `emoji`, `architecture/pretrained`, `local-dir:PATH`"
        )
    return folder


def head_file(head: str) -> Path:
    """The file an aesthetic head is loaded from. Raises ModelError where there is none."""
    path = EMBEDDED / "aesthetic.safetensors" if head == "emoji" else Path(head).expanduser()
    if not path.is_file():
        raise ModelError(
            f"aesthetic head {head!r}: no file {path}; give `emoji` or the path of "
            "sac+logos+ava1-l14-linearMSE.pth (github.com/christophschuhmann/improved-aesthetic-predictor)"
        )
    return path


def metric_fingerprint(config: MetricConfig) -> str:
    """16 hex digits of all that decides a metric's numbers for given images and prompts.

    Local weights count by content, wherever they lie; weights that open_clip fetches count by name.
    Raises ModelError where a local file is missing.
    """
    match config:
        case ImageStatsMetric():
            return fingerprint("metric", metric=config.kind, version=config.version)
        case ClipScoreMetric():
            parts = {"encoder": _encoder_identity(config.encoder)}
        case AestheticMetric():
            parts = {"encoder": _encoder_identity(config.encoder), "head": _digest(head_file(config.head))}
    return fingerprint("metric", metric=config.kind, version=config.version, **parts)


def _encoder_identity(encoder: str) -> str:
    folder = encoder_folder(encoder)
    if folder is None:
        return encoder
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".md")
    return "".join(f"{path.relative_to(folder).as_posix()} {_digest(path)}\n" for path in files)


def _digest(path: Path) -> str:
    stat = path.stat()
    return _sha256(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=256)  # two metrics that share an encoder of 2 GB read it once
def _sha256(path: Path, size: int, mtime_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
