"""A trial as a folder: adapter, model card, contact sheet, configuration; and its upload to the hub."""

import glob
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
from harness.store.artifact import explaining_lack_of_room, is_inside, sha256

if TYPE_CHECKING:
    from harness.results import Results
    from harness.store.workspace import Workspace


LOGIN = "run `hf auth login`, or set HF_TOKEN to a token that may write"


def push(folder: Path, repo_id: str, *, private: bool) -> str:
    """Upload an export as a model repository, made where there is none. Returns its address.

    `private` is for a repository that is made now; one that is there keeps what it is. Raises ExportError
    where the folder is not what `export_trial` wrote, or the hub cannot be reached, does not know who asks,
    or refuses.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    # What the library beneath raises without a connection; hub versions differ in which library that is.
    from huggingface_hub.errors import HTTPError as Unreachable  # type: ignore[attr-defined, unused-ignore]

    check(folder)
    if get_token() is None:
        raise ExportError(f"not logged in to the hub, so {repo_id} cannot be pushed; {LOGIN}")
    api = HfApi()
    try:
        made = api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=made.repo_id,
            folder_path=folder,
            allow_patterns=[glob.escape(name) for name in (*written(folder), CONFIG)],
            commit_message=f"Export of {os.fspath(folder.name)}",
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
    older = _older_export(folder)
    temporary = folder.parent / f".{folder.name}-{uuid.uuid4().hex[:8]}"
    try:
        with explaining_lack_of_room(folder):
            temporary.mkdir(parents=True)
            _fill(subject, workspace, temporary, layout)
            _replace(older, temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def written(folder: Path) -> dict[str, str]:
    """Names of an export's files with their sha256, as its `trial.json` has them; that one is not among them.

    Raises ExportError where the folder holds no export.
    """
    try:
        files = json.loads((folder / CONFIG).read_text(encoding="utf-8"))["files"]
        names = {str(name): str(digest) for name, digest in files.items() if is_inside(name)}
        if CARD not in names:
            raise ValueError("no card")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ExportError(f"{folder} holds no export; make one with `harness export` first") from None
    return names


def check(folder: Path) -> dict[str, str]:
    """`written`, after each file was compared with its hash. Raises ExportError for one that is another."""
    names = written(folder)
    for name, digest in names.items():
        if not (folder / name).is_file() or sha256(folder / name) != digest:
            raise ExportError(f"{folder / name} is not what was exported; export again into another folder")
    return names


def _older_export(folder: Path) -> dict[str, str]:
    """The files of an export that is to be replaced; none where the folder is empty, or is not there."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return {}
    try:
        names = written(folder)
    except ExportError:
        raise ExportError(f"{folder} is there and is no earlier export; give another --output") from None
    return {name: digest for name, digest in names.items() if (folder / name).is_file()}


def _replace(older: dict[str, str], new: Path, folder: Path) -> None:
    """Put the new export's files in place of the older one's. Whatever else is in the folder stays."""
    names = sorted(path.relative_to(new).as_posix() for path in new.rglob("*") if path.is_file())
    for name in {*older, *names} - {CONFIG}:
        if (folder / name).exists() and older.get(name) != sha256(folder / name):
            raise ExportError(
                f"{folder / name} is not of the earlier export; move it, or give another --output"
            )
    for name in older:
        (folder / name).unlink()
    for name in sorted(names, key=CONFIG.__eq__):  # which says that the others are there
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (new / name).replace(folder / name)


def _fill(subject: Subject, workspace: "Workspace", folder: Path, layout: Layout) -> None:
    files = write_files(subject, folder, layout)
    evidence = gather(subject)
    if evidence.pairs:
        contact_sheet(evidence, workspace).save(folder / SHEET)
    examples = _examples(evidence, workspace, folder)
    hashes = {file.relative_to(folder).as_posix(): sha256(file) for file in files}
    (folder / CARD).write_text(card(subject, evidence, files=hashes, examples=examples), encoding="utf-8")
    made = sorted(path for path in folder.rglob("*") if path.is_file())
    every = {path.relative_to(folder).as_posix(): sha256(path) for path in made}
    text = json.dumps({**_config(subject), "files": every}, indent=1, sort_keys=True, ensure_ascii=False)
    (folder / CONFIG).write_text(text + "\n", encoding="utf-8")


def _examples(evidence: Evidence, workspace: "Workspace", folder: Path) -> list[Example]:
    """The arm's images on the sheet, one of a prompt, as pixels alone: their headers may name paths."""
    examples: list[Example] = []
    for pair in evidence.pairs:
        shot = pair.shots[evidence.arm]
        image = None if shot is None else read_image(workspace, shot.path)
        if image is None or len(examples) == EXAMPLES or pair.prompt in {e.prompt for e in examples}:
            continue
        name = f"{PICTURES}/{len(examples) + 1}.png"
        (folder / PICTURES).mkdir(exist_ok=True)
        image.save(folder / name)
        examples.append(Example(prompt=pair.prompt, file=name))
    return examples


def _config(subject: Subject) -> dict[str, Any]:
    sweep = subject.results.sweep
    return {
        "sweep": sweep["name"],
        "question": sweep["question"],
        "trial": subject.index,
        "trial_id": subject.trial_id,
        "spec": portable(subject.config.model_dump(mode="json")),
        "versions": sweep["versions"],
        "finished_at": sweep["finished_at"],
    }
