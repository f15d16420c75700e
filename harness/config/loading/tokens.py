"""What a model's files tell of prompts and weights, without torch."""

import functools
import hashlib
import json
import re
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from harness.config.schema.adapter import HubFile
from harness.config.schema.model import EmojiModel, ModelConfig, SdxlModel
from harness.config.weights.layout import LORA_FILE
from harness.errors import ConfigError

if TYPE_CHECKING:
    from tokenizers import Tokenizer


EMOJI_FOLDER = Path(__file__).parents[2] / "diffusion" / "models" / "emoji"
DIGESTED = {".json", ".txt", ".model", ".safetensors", ".bin"}
CLIP_TOKENS = 77
OLDER_TOKENIZER = ("vocab.json", "merges.txt")

# compel's weights: `(two words)++`, `(two words)1.3`, `word++`, `word-`
_WEIGHTED_GROUP = re.compile(r"(?<!\\)\(([^()]*)(?<!\\)\)(?:[+-]+|\d+(?:\.\d+)?)")
_WEIGHTED_WORD = re.compile(r"(?<=\w)(?:\++|-+)(?=[\s,.;:]|$)")


def plain_text(prompt: str) -> str:
    """The prompt without compel's weights: `"(blurry)++, fox+"` is `"blurry, fox"`."""
    while (unwrapped := _WEIGHTED_GROUP.sub(r"\1", prompt)) != prompt:
        prompt = unwrapped
    return _WEIGHTED_WORD.sub("", prompt)


def check_prompt_lengths(config: ModelConfig, prompts: Iterable[str]) -> None:
    """Raise ConfigError for the first prompt that the text encoders would cut.

    Weights are not counted. Where the tokenizers' files are not on this machine (a hub id that was never
    downloaded), nothing is checked.
    """
    for prompt in prompts:
        if (why := too_long(config, prompt)) is not None:
            raise ConfigError(f"prompt {prompt!r} {why}; shorten it")


def too_long(config: ModelConfig, prompt: str, *, verbatim: bool = False) -> str | None:
    """How a prompt is longer than the text encoders take; None if not, or if the tokenizers are not here.

    `verbatim`: all of its signs are letters.
    """
    text = prompt if verbatim else plain_text(prompt)
    for folder in _tokenizer_folders(config):
        if folder is not None:
            tokens, limit = _token_count(folder, text)
            if tokens > limit:
                return (
                    f"has {tokens} tokens, and the model's {folder.name} takes {limit} (two of them mark "
                    "start and end)"
                )
    return None


def model_digest(config: ModelConfig) -> str | None:
    """The sha256 of weights and configuration in the model's local folders; None if there is none."""
    folders = [folder for folder in _local_folders(config) if folder is not None]
    if not folders:
        return None
    digest = hashlib.sha256()
    for folder in folders:
        for path in sorted(path for path in folder.rglob("*") if _is_content(path)):
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
            digest.update(f"{path.relative_to(folder).as_posix()}\0{content}\n".encode())
    return digest.hexdigest()


def _is_content(path: Path) -> bool:
    """False for the older form of a tokenizer beside the newer: it is there for older libraries alone."""
    if path.name in OLDER_TOKENIZER and path.with_name("tokenizer.json").is_file():
        return False
    return path.suffix in DIGESTED


def local_folder(source: str | None) -> Path | None:
    """The folder that a source names, or None if it is a hub id.

    Raises ConfigError where it has the form of a path and there is no such folder.
    """
    if source is None:
        return None
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_absolute() or source.startswith((".", "~")) or source.count("/") > 1:
        raise ConfigError(
            f"model folder {source} does not exist; give a folder in diffusers' layout or a hub id"
        )
    return None


def _local_folders(config: ModelConfig) -> list[Path | None]:
    match config:
        case EmojiModel():
            return [EMOJI_FOLDER]
        case SdxlModel():
            return [local_folder(config.source), local_folder(config.refiner), local_folder(config.vae)]


def _tokenizer_folders(config: ModelConfig) -> list[Path | None]:
    names = ("tokenizer", "tokenizer_2")
    match config:
        case EmojiModel():
            folders = [EMOJI_FOLDER / "base" / name for name in names]
            return [folder for folder in folders if folder.is_dir()]  # else loading says what is missing
        case SdxlModel():
            folder = local_folder(config.source)
            if folder is not None:
                return [folder / name for name in names]
            return [_cached(config.source, config.revision, name) for name in names]


def _cached(hub_id: str, revision: str | None, name: str) -> Path | None:
    for file in ("tokenizer.json", "merges.txt"):
        found = cached_file(hub_id, revision, f"{name}/{file}")
        if found is not None:
            return found.parent
    return None


def hub_file(file: HubFile) -> Path:
    """A file of the hub on this machine: downloaded, unless it was before.

    Raises ConfigError where it cannot be had.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    name = file.weight_name or LORA_FILE
    known = cached_file(file.id, file.revision, name)
    if known is not None:
        return known
    try:
        return Path(hf_hub_download(file.id, name, revision=file.revision))
    except (OSError, ValueError, HfHubHTTPError) as error:
        reason = textwrap.shorten(str(error), 120, placeholder=" …")
        raise ConfigError(
            f"{name} of {file.id} cannot be had from the hub: {reason}; check id, revision and weight_name, "
            "and the network"
        ) from error


def cached_file(hub_id: str, revision: str | None, name: str) -> Path | None:
    """A file of the hub that was downloaded before; None if it was not. Nothing is downloaded."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(hub_id, name, revision=revision)
    return Path(found) if isinstance(found, str) else None


def _token_count(folder: Path, text: str) -> tuple[int, int]:
    tokenizer, limit = _tokenizer(folder)
    return len(tokenizer.encode(text).ids), limit


@functools.lru_cache(maxsize=8)
def _tokenizer(folder: Path) -> tuple["Tokenizer", int]:
    """A CLIP tokenizer and its limit, from `tokenizer.json` or from the older `vocab.json` + `merges.txt`."""
    from tokenizers import Tokenizer

    try:
        if (folder / "tokenizer.json").is_file():
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        else:
            tokenizer = _from_vocabulary(folder)
        config = json.loads((folder / "tokenizer_config.json").read_text())
    except Exception as error:  # tokenizers raises bare Exception for whatever it cannot read
        raise ConfigError(
            f"tokenizer {folder} cannot be read ({error}); the model folder is not complete"
        ) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer, min(int(config.get("model_max_length", CLIP_TOKENS)), CLIP_TOKENS)


def _from_vocabulary(folder: Path) -> "Tokenizer":
    """CLIP's tokenizer (Radford et al. 2021): lower case, byte-level BPE, `</w>` at the end of a word."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

    start, end = "<|startoftext|>", "<|endoftext|>"
    words = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    model = models.BPE.from_file(
        str(folder / "vocab.json"), str(folder / "merges.txt"), unk_token=end, end_of_word_suffix="</w>"
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    vocabulary = tokenizer.get_vocab()
    tokenizer.post_processor = processors.BertProcessing((end, vocabulary[end]), (start, vocabulary[start]))
    return tokenizer
