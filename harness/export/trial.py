"""A trial as a folder that explains itself: adapter, model card, contact sheet, configuration."""

import json
import shutil
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from harness.errors import ExportError
from harness.export.card import PICTURES, SHEET, Example, card
from harness.export.evidence import Evidence, gather
from harness.export.files import Layout, write_files
from harness.export.portable import portable
from harness.export.sheet import contact_sheet, read_picture
from harness.export.subject import Subject, find
from harness.stage import sha256

if TYPE_CHECKING:
    from harness.results import Results
    from harness.workspace import Workspace

CARD, CONFIG = "README.md", "trial.json"
EXAMPLES = 3  # pictures for the hub's gallery


def export_trial(
    results: "Results",
    workspace: "Workspace",
    trial: int | Literal["best"],
    *,
    folder: Path,
    layout: Layout,
) -> Path:
    """Write a trial's adapter with its model card into `folder`, and return it. An older export is replaced.

    `trial` is its number in the sweep, or `best`: the one selected on dev prompts. `layout` is diffusers'
    (`load_lora_weights`), kohya's (A1111, ComfyUI) or both. The same trial gives the same bytes.

    Raises SpecError where the trial has no adapter, StageError where its files are gone or of another
    version, ExportError where `folder` holds something else.
    """
    subject = find(results, workspace, trial)
    if folder.exists() and not _is_export(folder):
        raise ExportError(f"{folder} is there and is no earlier export; give another --output")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.parent / f".{folder.name}-{uuid.uuid4().hex[:8]}"
    try:
        temporary.mkdir()
        _fill(subject, workspace, temporary, layout)
        if folder.exists():
            shutil.rmtree(folder)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _is_export(folder: Path) -> bool:
    return folder.is_dir() and ((folder / CONFIG).is_file() or not any(folder.iterdir()))


def _fill(subject: Subject, workspace: "Workspace", folder: Path, layout: Layout) -> None:
    files = write_files(subject, folder, layout)
    evidence = gather(subject)
    if evidence.pairs:
        contact_sheet(evidence, workspace).save(folder / SHEET)
    examples = _examples(evidence, workspace, folder)
    hashes = {file.relative_to(folder).as_posix(): sha256(file) for file in files}
    text = json.dumps(_config(subject, hashes), indent=1, sort_keys=True, ensure_ascii=False)
    (folder / CONFIG).write_text(text + "\n", encoding="utf-8")
    (folder / CARD).write_text(card(subject, evidence, files=hashes, examples=examples), encoding="utf-8")


def _examples(evidence: Evidence, workspace: "Workspace", folder: Path) -> list[Example]:
    """The arm's pictures on the sheet, one of a prompt, as pixels alone: their headers may name paths."""
    examples: list[Example] = []
    for pair in evidence.pairs:
        shot = pair.shots[evidence.arm]
        image = None if shot is None else read_picture(workspace.file(shot.path))
        if image is None or len(examples) == EXAMPLES or pair.prompt in {e.prompt for e in examples}:
            continue
        name = f"{PICTURES}/{len(examples) + 1}.png"
        (folder / PICTURES).mkdir(exist_ok=True)
        image.save(folder / name)
        examples.append(Example(prompt=pair.prompt, file=name))
    return examples


def _config(subject: Subject, hashes: dict[str, str]) -> dict[str, Any]:
    sweep = subject.results.sweep
    return {
        "sweep": sweep["name"],
        "question": sweep["question"],
        "trial": subject.index,
        "trial_id": subject.trial_id,
        "spec": portable(subject.spec.model_dump(mode="json")),
        "versions": sweep["versions"],
        "finished_at": sweep["finished_at"],
        "sha256": hashes,
    }
