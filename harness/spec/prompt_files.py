"""Prompts from a file, and the split of a prompt that names none."""

import csv
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.errors import SpecError
from harness.spec.yaml_file import read_text, read_yaml


def read_prompts(path: Path) -> list[Any]:
    """The prompts of a file as a sweep's YAML could give them inline: texts, or mappings.

    `.yaml` and `.yml`: a list of texts or of {text, tags, split}. `.txt`: one prompt per line, empty lines
    skipped. `.tsv`: PartiPrompts' layout, a header with `Prompt`; `Category` and `Challenge` become tags.

    Raises:
        SpecError: the file is missing, empty or of another kind, or a prompt stands in it twice.
    """
    match path.suffix.lower():
        case ".yaml" | ".yml":
            found = read_yaml(path)
            if not isinstance(found, list | None):
                raise SpecError(f"{path}: must be a list of prompts")
        case ".txt":
            found = [line.strip() for line in read_text(path).splitlines() if line.strip()]
        case ".tsv":
            found = _read_tsv(path)
        case other:
            raise SpecError(f"{path}: prompts cannot be read from {other!r}; allowed: .yaml, .txt, .tsv")
    if not found:
        raise SpecError(f"{path} has no prompts")
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
    """Either dev or test, by an even chance that hangs on the text alone: no prompt ever moves another."""
    return ("dev", "test")[hashlib.sha256(f"split {text}".encode()).digest()[0] % 2]


def _read_tsv(path: Path) -> list[dict[str, Any]]:
    # Quoting off: PartiPrompts has prompts with a lone quotation mark.
    rows = csv.DictReader(read_text(path).splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE)
    if "Prompt" not in (rows.fieldnames or ()):
        raise SpecError(f"{path}: its first line must name a column Prompt")
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
            raise SpecError(f"{path}: the prompt {text.strip()!r} is given twice")
        seen.add(text.strip())
