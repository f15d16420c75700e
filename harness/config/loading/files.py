"""Users' texts, YAML and prompt files, read strictly.

YAML follows the core schema of YAML 1.2, and a repeated key is an error: PyYAML's YAML 1.1 reads `no` as
false, `1e-4` as text and `12:30` as 750. Tags construct nothing, and what aliases stand for is counted. A
prompt without a split gets one from a hash of its text.
"""

import hashlib
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from harness.errors import ConfigError

MOST_BYTES = 2**24  # of a text
MOST_YAML_BYTES = 2**21  # about five seconds of PyYAML
MOST_NODES = 100_000  # of a YAML text, what aliases stand for included
MOST_DEPTH = 40
MOST_DIGITS = 40


class _CoreSafeLoader(yaml.SafeLoader):
    """SafeLoader with the scalars of YAML 1.2, no silent loss of doubled keys, no tags and no bombs."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - as in the base class; filled below

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._nodes = self._depth = 0
        self._sizes: dict[str, int] = {}  # of what each anchor stands for

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event, before = self.peek_event(), self._nodes  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent):
            anchor = str(event.anchor)
            if anchor in self.anchors and anchor not in self._sizes:
                raise _refused(event, f"*{anchor} stands for what it is in")
            self._nodes += self._sizes.get(anchor, 0)
        else:
            self._check(event)
        self._nodes, self._depth = self._nodes + 1, self._depth + 1
        if self._nodes > MOST_NODES or self._depth > MOST_DEPTH:
            raise _refused(event, f"more than {MOST_NODES:,} values, or nested more than {MOST_DEPTH} deep")
        node: yaml.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        if not isinstance(event, yaml.AliasEvent) and event.anchor is not None:
            self._sizes[event.anchor] = self._nodes - before
        return node

    def _check(self, event: Any) -> None:
        if event.tag is not None:
            raise _refused(event, f"tags are not used here: {event.tag:.40}")
        if isinstance(event, yaml.ScalarEvent) and not event.value.isascii() and not is_text(event.value):
            raise _refused(event, "half a surrogate pair is no character")

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or not key.tag.endswith((":str", ":merge")):
                raise yaml.MarkedYAMLError(
                    problem="a key must be plain text; put quotes around it", problem_mark=key.start_mark
                )
            if key.value in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"key {key.value!r} is given twice", problem_mark=key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _refused(event: Any, why: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=why, problem_mark=event.start_mark)


def is_text(text: str) -> bool:
    """False where a part of it is no character, which no file of UTF-8 can hold."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


PLAIN = "\n\u00a0\u202f"  # what str.isprintable counts as no letter: the end of a line, and spaces of numbers


def visible(text: str) -> str:
    """The text with its control characters as escapes; line feeds stay."""
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() or letter in PLAIN else ascii(letter)[1:-1] for letter in text
    )


def one_line(text: object, most: int = 160) -> str:
    """A user's text inside a message: on one line, cut, every character of it visible."""
    shown = visible(" ".join(str(text).split()))
    return shown if len(shown) <= most else f"{shown[: most - 1]}…"


def lines_of(text: str) -> list[str]:
    """Its lines. They end at line feeds alone: other separators may stand in a prompt or in JSON."""
    return [line.removesuffix("\r") for line in text.split("\n")]


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", [*"~nN", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", list("-+.0123456789")),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", list("-+.")),
    ("merge", r"<<", ["<"]),
):
    _CoreSafeLoader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_pattern})\Z"), _first
    )


def _construct_int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    text = loader.construct_scalar(node)
    if len(text) > MOST_DIGITS:
        raise yaml.MarkedYAMLError(problem=f"{text[:12]}… is too long a number", problem_mark=node.start_mark)
    return int(text, 16) if text.startswith("0x") else int(text)  # 010 is ten, not eight


_CoreSafeLoader.add_constructor("tag:yaml.org,2002:int", _construct_int)


def read_text(path: Path) -> str:
    """The text of a file the user named: UTF-8, a byte order mark left out.

    Every text of a user goes through here. Raises ConfigError where it cannot be read.
    """
    try:
        if path.exists() and not path.is_file():  # a pipe or a device may never end
            raise ConfigError(f"{one_line(path)} is not a file")
        if path.stat().st_size > MOST_BYTES:
            raise ConfigError(f"{one_line(path)} is larger than the {MOST_BYTES // 2**20} MiB of a text")
        content = path.read_bytes()
        return content.decode("utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{one_line(path)} does not exist") from None
    except UnicodeDecodeError as error:
        utf_16 = "; it is UTF-16: save it as UTF-8" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
        raise ConfigError(f"{one_line(path)} is not UTF-8 text (byte {error.start}){utf_16}") from None
    except (OSError, ValueError) as error:  # ValueError: a path with a zero byte
        raise ConfigError(f"{one_line(path)} cannot be read: {one_line(error)}") from None


def user_path(folder: Path, path: str | Path) -> Path:
    """A path as a sweep gives it, relative to the sweep's folder; `~` is a home.

    Raises ConfigError where it can be no path.
    """
    try:
        found = folder / Path(path).expanduser()
        found.stat()
    except (RuntimeError, ValueError) as error:  # no such home; a zero byte
        raise ConfigError(f"{one_line(path)} can be no path: {one_line(error)}") from None
    except OSError:  # told where it is used
        pass
    return found


def parse(text: str, *, source: str) -> Any:
    """What a YAML text says. `source` names it in errors: a file, or an override.

    Raises:
        ConfigError: with `source:line` where the text is not valid YAML.
    """
    if len(text) > MOST_YAML_BYTES:
        raise ConfigError(f"{source}: more than {MOST_YAML_BYTES // 2**20} MiB; prompts may be a .txt file")
    try:
        return yaml.load(text, Loader=_CoreSafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        raise ConfigError(f"{source}{line}: {one_line(error.problem or error.context)}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{source}: not valid YAML: {one_line(error)}") from None


def read_yaml(path: Path) -> Any:
    """What a YAML file says."""
    return parse(read_text(path), source=one_line(path))


def read_prompts(path: Path) -> list[Any]:
    """The prompts of a file as a sweep's YAML could give them inline: texts, or mappings.

    `.yaml` and `.yml`: a list of texts or of {text, tags, split}. `.txt`: one prompt per line, empty lines
    skipped. `.tsv`: PartiPrompts' layout, a header with `Prompt`; `Category` and `Challenge` become tags.

    Raises:
        ConfigError: the file is missing, empty or of another kind, or a prompt stands in it twice.
    """
    match path.suffix.lower():
        case ".yaml" | ".yml":
            found = read_yaml(path)
            if not isinstance(found, list | None):
                raise ConfigError(f"{one_line(path)}: must be a list of prompts")
        case ".txt":
            found = [line.strip() for line in lines_of(read_text(path)) if line.strip()]
        case ".tsv":
            found = _read_tsv(path)
        case other:
            raise ConfigError(
                f"{one_line(path)}: prompts cannot be read from {one_line(other, 20)!r}; "
                "allowed: .yaml, .txt, .tsv"
            )
    if not found:
        raise ConfigError(f"{one_line(path)} has no prompts")
    _check_distinct(found, path)
    return list(found)


def with_splits(prompts: Sequence[Any]) -> list[Any]:
    """Prompts as mappings that have a split. What is not a prompt is left for validation to refuse."""
    found = [{"text": prompt} if isinstance(prompt, str) else prompt for prompt in prompts]
    open_ = [
        place
        for place, prompt in enumerate(found)
        if isinstance(prompt, dict) and "split" not in prompt and isinstance(prompt.get("text"), str)
    ]
    texts = [found[place]["text"].strip() for place in open_]
    tags = [next(iter(found[place].get("tags") or ()), None) for place in open_]
    for place, split in zip(open_, splits_of(texts, tags), strict=True):
        found[place] = {**found[place], "split": split}
    return found


MANY = 16  # prompts from which neither side of a split by hash may be short
LEAST, LEAST_SHARE = 6, 0.4  # prompts of each side: six are the fewest that carry a verdict


def splits_of(texts: Sequence[str], first_tags: Sequence[Any]) -> list[str]:
    """Dev or test for each prompt: an even chance by a hash of its text, so that another prompt moves none.

    Only where chance leaves one side short of 40 % (of a first tag's prompts; of all, from 16 on, and of six)
    are prompts of the other side moved, those first that their hash puts nearest to it.
    """
    hashes = [hashlib.sha256(f"split {text}".encode(errors="surrogatepass")).digest() for text in texts]
    splits = ["dev" if digest[0] % 2 == 0 else "test" for digest in hashes]

    def balance(places: Sequence[int], least: int) -> None:
        for short, long in (("dev", "test"), ("test", "dev")):
            movable = sorted((p for p in places if splits[p] == long), key=lambda p: hashes[p][1:9])
            for place in movable[: max(0, least - sum(splits[p] == short for p in places))]:
                splits[place] = short

    for tag in dict.fromkeys(map(str, first_tags)):
        stratum = [place for place, own in enumerate(first_tags) if str(own) == tag]
        balance(stratum, int(LEAST_SHARE * len(stratum)))
    if len(texts) >= MANY:
        balance(range(len(texts)), max(LEAST, math.ceil(LEAST_SHARE * len(texts))))
    return splits


def _read_tsv(path: Path) -> list[dict[str, Any]]:
    # Quotation marks mean nothing: PartiPrompts has prompts with a lone one.
    names, *rows = [line.split("\t") for line in lines_of(read_text(path))]
    if "Prompt" not in names:
        raise ConfigError(f"{one_line(path)}: its first line must name a column Prompt")
    prompts: list[dict[str, Any]] = []
    for number, cells in enumerate(rows, start=2):
        row = dict(zip(names, cells, strict=False))
        if any(cells) and not row.get("Prompt", "").strip():
            raise ConfigError(f"{one_line(path)}:{number}: no prompt in the column Prompt")
        tags = [row[name] for name in ("Category", "Challenge") if row.get(name)]
        if any(cells):
            prompts.append({"text": row["Prompt"].strip(), "tags": tags})
    return prompts


def _check_distinct(prompts: Sequence[Any], path: Path) -> None:
    seen: set[str] = set()
    for prompt in prompts:
        text = prompt.get("text") if isinstance(prompt, dict) else prompt
        if not isinstance(text, str):
            continue  # validation names it
        if text.strip() in seen:
            raise ConfigError(f"{one_line(path)}: the prompt {one_line(text)!r} is given twice")
        seen.add(text.strip())
