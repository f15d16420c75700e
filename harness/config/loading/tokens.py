"""What a model's files tell of prompts and weights, without torch."""

import functools
import gzip
import hashlib
import importlib.util
import json
import re
import textwrap
from collections.abc import Iterable, Iterator, Set
from pathlib import Path
from typing import TYPE_CHECKING

from harness.config.schema.adapter import HubFile
from harness.config.schema.model import EmojiModel, ModelConfig, SdxlModel
from harness.config.weights.checkpoint import is_file
from harness.config.weights.layout import LORA_FILE
from harness.config.weights.sdxl import PUBLISHED
from harness.errors import ConfigError

if TYPE_CHECKING:
    from tokenizers import Tokenizer


EMOJI_FOLDER = Path(__file__).parents[2] / "diffusion" / "models" / "emoji"
CONFIGURATION = {".json", ".txt", ".model"}
DIGESTED = CONFIGURATION | {".safetensors", ".bin"}
CLIP_TOKENS = 77
CLIP_MERGES = 49152 - 256 - 2  # the vocabulary file holds more lines than CLIP (Radford et al. 2021) uses
START, END = "<|startoftext|>", "<|endoftext|>"
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
    for name, (tokenizer, limit) in _tokenizers(config):
        tokens = len(tokenizer.encode(text).ids)
        if tokens > limit:
            return (
                f"has {tokens} tokens, and the model's {name} takes {limit} (two of them mark start and end)"
            )
    return None


def model_digest(config: ModelConfig) -> str | None:
    """The sha256 of weights and configuration in the model's local folders and files; None if there are none.

    A file's name is no part of it, and of the folder `config` no weights are.
    """
    named = [(_local(source), DIGESTED) for source in _sources(config)]
    if isinstance(config, SdxlModel):
        named.append((_local(config.config), CONFIGURATION))
    digest, here = hashlib.sha256(), False
    for place, suffixes in named:
        if place is None:
            continue
        here = True
        is_folder = place.is_dir()
        files = sorted(p for p in place.rglob("*") if _is_content(p, suffixes)) if is_folder else [place]
        for path in files:
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
            name = path.relative_to(place).as_posix() if is_folder else ""
            digest.update(f"{name}\0{content}\n".encode())
    return digest.hexdigest() if here else None


def _is_content(path: Path, suffixes: Set[str]) -> bool:
    """False for the older form of a tokenizer beside the newer: it is there for older libraries alone."""
    if path.name in OLDER_TOKENIZER and path.with_name("tokenizer.json").is_file():
        return False
    return path.suffix in suffixes


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


def local_file(source: str | None) -> Path | None:
    """The file that a source names, or None if it is a folder or a hub id. It need not be there."""
    return Path(source).expanduser() if source is not None and is_file(source) else None


def _local(source: str | None) -> Path | None:
    file = local_file(source)
    if file is not None and not file.is_file():
        raise ConfigError(f"model file {file} does not exist; give a .safetensors file")
    return file or local_folder(source)


def _sources(config: ModelConfig) -> list[str | None]:
    match config:
        case EmojiModel():
            return [str(EMOJI_FOLDER)]
        case SdxlModel():
            return [config.source, config.refiner, config.vae]


def _tokenizers(config: ModelConfig) -> Iterator[tuple[str, tuple["Tokenizer", int]]]:
    """The model's tokenizers by name, each with its limit, as far as they are on this machine."""
    folder: Path | None = EMOJI_FOLDER / "base"
    if isinstance(config, SdxlModel):
        if config.config is None and (config.source in PUBLISHED or is_file(config.source)):
            yield "tokenizer", (_published_tokenizer(), CLIP_TOKENS)
            return
        folder = local_folder(config.config or config.source)
    for name in ("tokenizer", "tokenizer_2"):
        if folder is None:
            assert isinstance(config, SdxlModel)
            found = _cached(config.source, config.revision, name)
        elif isinstance(config, EmojiModel) and not (folder / name).is_dir():
            found = None  # loading says what is missing
        else:
            found = folder / name
        if found is not None:
            yield name, _tokenizer(found)


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


@functools.lru_cache(maxsize=8)
def _tokenizer(folder: Path) -> tuple["Tokenizer", int]:
    """A CLIP tokenizer and its limit, from `tokenizer.json` or from the older `vocab.json` + `merges.txt`."""
    from tokenizers import Tokenizer
    from tokenizers.models import BPE

    try:
        if (folder / "tokenizer.json").is_file():
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        else:
            tokenizer = _clip_tokenizer(
                *BPE.read_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
            )
        config = json.loads((folder / "tokenizer_config.json").read_text())
    except Exception as error:  # tokenizers raises bare Exception for whatever it cannot read
        raise ConfigError(
            f"tokenizer {folder} cannot be read ({error}); the model folder is not complete"
        ) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer, min(int(config.get("model_max_length", CLIP_TOKENS)), CLIP_TOKENS)


@functools.cache
def _published_tokenizer() -> "Tokenizer":
    return _clip_tokenizer(*clip_vocabulary())


def _clip_tokenizer(vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> "Tokenizer":
    """CLIP's tokenizer (Radford et al. 2021): lower case, byte-level BPE, `</w>` at the end of a word."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

    words = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token=END, end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.post_processor = processors.BertProcessing((END, vocabulary[END]), (START, vocabulary[START]))
    return tokenizer


def clip_vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """The pieces and merges of CLIP's tokenizer, which is SDXL's, from the file that open_clip brings along.

    Raises ConfigError where it is not there.
    """
    package = importlib.util.find_spec("open_clip")
    path = Path(package.origin or "").with_name("bpe_simple_vocab_16e6.txt.gz") if package else None
    if path is None or not path.is_file():
        raise ConfigError(
            "the model takes CLIP's tokenizers, whose vocabulary comes with open_clip_torch: install it, or "
            "give a folder in diffusers' layout with tokenizer/ and tokenizer_2/ as model.config"
        )
    lines = gzip.decompress(path.read_bytes()).decode().split("\n")
    merges = [(first, second) for first, second in map(str.split, lines[1 : CLIP_MERGES + 1])]
    letters = _letters()
    pieces = [*letters, *(letter + "</w>" for letter in letters), *map("".join, merges), START, END]
    return {piece: number for number, piece in enumerate(pieces)}, merges


def _letters() -> list[str]:
    """The signs that stand for bytes in byte-level BPE (Radford et al. 2019): printable ones as they are."""
    spans = (("!", "~"), ("¡", "¬"), ("®", "ÿ"))
    printable = [byte for first, last in spans for byte in range(ord(first), ord(last) + 1)]
    return [*map(chr, printable), *(chr(256 + place) for place in range(256 - len(printable)))]
