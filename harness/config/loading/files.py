"""YAML and prompt files, read strictly.

YAML follows the core schema of YAML 1.2, and a repeated key is an error: PyYAML's YAML 1.1 reads `no` as
false, `1e-4` as text and `12:30` as 750. A prompt without a split gets one from a hash of its text.
"""

import csv
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from harness.errors import ConfigError


class _CoreSafeLoader(yaml.SafeLoader):
    """SafeLoader with the scalars of YAML 1.2 and no silent loss of doubled keys."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - as in the base class; filled below

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="a key must be plain text", problem_mark=key.start_mark)
            if key.value in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"key {key.value!r} is given twice", problem_mark=key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


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
    return int(text, 16) if text.startswith("0x") else int(text)  # 010 is ten, not eight


_CoreSafeLoader.add_constructor("tag:yaml.org,2002:int", _construct_int)


def read_text(path: Path) -> str:
    """The text of a file the user named. Raises ConfigError where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None


def parse(text: str, *, source: str) -> Any:
    """What a YAML text says. `source` names it in errors: a file, or an override.

    Raises:
        ConfigError: with `source:line` where the text is not valid YAML.
    """
    try:
        return yaml.load(text, Loader=_CoreSafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        raise ConfigError(f"{source}{line}: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: not valid YAML: {' '.join(str(error).split())}") from None


def read_yaml(path: Path) -> Any:
    """What a YAML file says."""
    return parse(read_text(path), source=str(path))


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
                raise ConfigError(f"{path}: must be a list of prompts")
        case ".txt":
            found = [line.strip() for line in read_text(path).splitlines() if line.strip()]
        case ".tsv":
            found = _read_tsv(path)
        case other:
            raise ConfigError(f"{path}: prompts cannot be read from {other!r}; allowed: .yaml, .txt, .tsv")
    if not found:
        raise ConfigError(f"{path} has no prompts")
    _check_distinct(found, path)
    return list(found)


def with_split(prompt: Any) -> Any:
    """A prompt as a mapping that has a split. What is not a prompt is left for validation to refuse."""
    if isinstance(prompt, str):
        prompt = {"text": prompt}
    if isinstance(prompt, dict) and "split" not in prompt and isinstance(prompt.get("text"), str):
        return {**prompt, "split": split_of(prompt["text"].strip())}
    return prompt


def split_of(text: str) -> str:
    """Either dev or test, by an even chance that depends on the text alone: another prompt moves none."""
    return ("dev", "test")[hashlib.sha256(f"split {text}".encode()).digest()[0] % 2]


def _read_tsv(path: Path) -> list[dict[str, Any]]:
    # Quoting off: PartiPrompts has prompts with a lone quotation mark.
    rows = csv.DictReader(read_text(path).splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE)
    if "Prompt" not in (rows.fieldnames or ()):
        raise ConfigError(f"{path}: its first line must name a column Prompt")
    prompts: list[dict[str, Any]] = []
    for row in rows:
        tags = [row[name] for name in ("Category", "Challenge") if row.get(name)]
        prompts.append({"text": row["Prompt"].strip(), "tags": tags})
    return prompts


def _check_distinct(prompts: Sequence[Any], path: Path) -> None:
    seen: set[str] = set()
    for prompt in prompts:
        text = prompt.get("text") if isinstance(prompt, dict) else prompt
        if not isinstance(text, str):
            continue  # validation names it
        if text.strip() in seen:
            raise ConfigError(f"{path}: the prompt {text.strip()!r} is given twice")
        seen.add(text.strip())
