"""A trial as a folder: adapter, model card, contact sheet, configuration; and its upload to the hub."""

import json
import os
import shutil
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from harness.errors import ExportError
from harness.reporting.export.adapter_files import Layout, write_files
from harness.reporting.export.card import PICTURES, SHEET, Example, card
from harness.reporting.export.contact_sheet import contact_sheet, read_image
from harness.reporting.export.evidence import Evidence, gather
from harness.reporting.export.subject import Subject, find, portable
from harness.store.artifact import sha256

if TYPE_CHECKING:
    from harness.results import Results
    from harness.store.workspace import Workspace


LOGIN = "run `hf auth login`, or set HF_TOKEN to a token that may write"


def push(folder: Path, repo_id: str, *, private: bool) -> str:
    """Upload an export as a model repository, made where there is none. Returns its address.

    `private` is for a repository that is made now; one that is there keeps what it is. Raises ExportError
    where the hub cannot be reached, does not know who asks, or refuses.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    # What the library beneath raises without a connection; hub versions differ in which library that is.
    from huggingface_hub.errors import HTTPError as Unreachable  # type: ignore[attr-defined, unused-ignore]

    if not (folder / "README.md").is_file():
        raise ExportError(f"{folder} holds no export; make one with `harness export` first")
    if get_token() is None:
        raise ExportError(f"not logged in to the hub, so {repo_id} cannot be pushed; {LOGIN}")
    api = HfApi()
    try:
        made = api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=made.repo_id, folder_path=folder, commit_message=f"Export of {os.fspath(folder.name)}"
        )
    except HFValidationError as error:
        raise ExportError(f"{repo_id!r} is no repository of the hub; give OWNER/NAME ({error})") from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        advice = LOGIN if status in (401, 403) else "look at the hub's answer and try again"
        raise ExportError(
            f"the hub refused to take {repo_id} (HTTP {status}: {_line(error)}); {advice}"
        ) from error
    except (Unreachable, OSError) as error:
        raise ExportError(
            f"the hub cannot be reached, so {repo_id} was not pushed ({_line(error)}); the export in "
            f"{folder} "
            "is complete: push it again when there is a network (and HF_HUB_OFFLINE is not set)"
        ) from error
    return str(made)


def _line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


CARD, CONFIG = "README.md", "trial.json"
EXAMPLES = 3  # images for the hub's gallery


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

    Raises ConfigError where the trial has no adapter, ArtifactError where its files are gone or of another
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
    """The arm's images on the sheet, one of a prompt, as pixels alone: their headers may name paths."""
    examples: list[Example] = []
    for pair in evidence.pairs:
        shot = pair.shots[evidence.arm]
        image = None if shot is None else read_image(workspace.file(shot.path))
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
        "spec": portable(subject.config.model_dump(mode="json")),
        "versions": sweep["versions"],
        "finished_at": sweep["finished_at"],
        "sha256": hashes,
    }
