"""The page: sections of a study, with arms in words, rendered by a template and written atomically."""

import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from harness.config.loading.files import visible
from harness.errors import WorkspaceError
from harness.reporting.report.data import as_script, page_data
from harness.reporting.report.figures.curves import family_curves
from harness.reporting.report.figures.effects import (
    dose_response,
    forest,
    forest_hidden,
    forest_narrow,
    heatmap,
)
from harness.reporting.report.figures.losses import loss_curves, run_losses
from harness.reporting.report.figures.search import search_figures
from harness.reporting.report.figures.strip import strips
from harness.reporting.report.images import family_row, image_rows
from harness.reporting.report.layout import param_name, shown_arms
from harness.reporting.report.provenance import arm_rows, config_uri, method, provenance
from harness.reporting.report.thumbnails import Cache, Thumbnails
from harness.results.contrast import known, number, text
from harness.results.format import (
    axis_name,
    axis_value,
    count,
    events,
    interval,
    listed,
    metric_name,
    p_text,
    percent,
    plain,
    signed,
    tone,
)
from harness.results.headline import verdict
from harness.results.study import Study
from harness.results.votes import noise, vote_contrasts
from harness.results.votes import read as read_votes
from harness.store.workspace import REPORT

if TYPE_CHECKING:
    from harness.results import Results
    from harness.store.workspace import Workspace


TEMPLATES = Path(__file__).parent / "templates"
STYLES = ("style.css", "explore.css")
SCRIPTS = (
    "data",
    "state",
    "lightbox",
    "grid",
    "picture",
    "trials",
    "votes",
    "main",
)  # in this order, in one scope


def write(
    results: "Results",
    workspace: "Workspace",
    target: Path,
    *,
    base: str | None = None,
    cache: Cache | None = None,
) -> None:
    """Write the page. Raises WorkspaceError where it cannot be written.

    `base` leads from the page to the images' paths; None: to the workspace, if the page lies in it.
    """
    page = render(results, workspace, base=base or _base(workspace, target), cache=cache)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}-")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(page)
            os.chmod(name, 0o644)  # mkstemp gives 0600; the page is there to be shared
            os.replace(name, target)
        finally:
            Path(name).unlink(missing_ok=True)
    except OSError as error:
        raise WorkspaceError(f"{target} cannot be written: {error.strerror}") from error


def bundle(results: "Results", workspace: "Workspace", folder: Path, *, zipped: bool) -> Path:
    """The page with its originals: see `harness.reporting.report.write_bundle`."""
    try:
        with tempfile.TemporaryDirectory() as temporary:
            place = Path(temporary) / folder.name if zipped else folder
            place.mkdir(parents=True, exist_ok=True)
            write(results, workspace, place / REPORT, base="./")
            for path in results.images["path"]:
                original, copy = workspace.file(path), place / path
                if original.is_file():
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(original, copy)
            if not zipped:
                return folder
            folder.parent.mkdir(parents=True, exist_ok=True)
            archive = shutil.make_archive(str(folder), "zip", root_dir=temporary, base_dir=folder.name)
            return Path(archive)
    except OSError as error:
        raise WorkspaceError(f"{folder} cannot be written: {error.strerror}") from error


def _base(workspace: "Workspace", target: Path) -> str | None:
    """From a page below the workspace to its root; None for any other, and where images are in a bucket."""
    root, folder = workspace.root.resolve(), target.resolve().parent
    if "://" in workspace.address or not folder.is_relative_to(root):
        return None
    return "../" * len(folder.relative_to(root).parts) or "./"


def render(
    results: "Results", workspace: "Workspace", *, base: str | None = None, cache: Cache | None = None
) -> str:
    """The page as text."""
    study = Study(results)
    thumbnails = Thumbnails(workspace, list(results.images["path"]), cache={} if cache is None else cache)
    groups, every = image_rows(study, thumbnails)
    curves = _curves(study, thumbnails)
    data = page_data(study, thumbnails, base)  # after all rows of pairs: it takes the bytes that are left
    found = verdict(study)
    ballots = read_votes(workspace.fetch_sweep(study.sweep["name"]))
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            study=study,
            sweep=study.sweep,
            verdict=found,
            strips=strips(study, found.contrasts),
            rungs=study.has_ladder(found.contrasts),
            progress=_progress(study),
            groups=groups,
            every=every,
            forest=forest(study),
            forest_narrow=forest_narrow(study),
            heatmap=heatmap(study),
            found=search_figures(study),
            dose=dose_response(study),
            trials=_trials(study),
            votes=vote_contrasts(results, ballots),
            raters=[ballot.rater for ballot in ballots],
            noise=noise(ballots),
            failures=_failures(study),
            events=events(study.sweep.get("events", [])),
            arms=arm_rows(study),
            curves=curves,
            losses=loss_curves(run_losses(study, workspace)),
            hidden=forest_hidden(study),
            unseen=_unseen(study),
            latents=_latents(study),
            method=method(study),
            provenance=provenance(study, workspace),
            config_uri=config_uri(study),
            base=base,
            left_out=data["left_out"],
            data=Markup(as_script(data)),
            css=Markup("".join(_own_file(name) for name in STYLES)),  # our own files, not the user's
            script=Markup(_script()),
        )
    )


def _own_file(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")


def _script() -> str:
    """The page's scripts in a scope of their own."""
    parts = "\n".join(_own_file(f"script/{name}.js") for name in SCRIPTS)
    return f'(() => {{\n"use strict";\n{parts}}})();\n'


def _progress(study: Study) -> dict[str, int]:
    done = study.n_trials("completed") + study.n_trials("stopped")
    return {"done": done, "asked": study.n_trials()}


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        finalize=lambda shown: visible(shown) if type(shown) is str else shown,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        signed=signed,
        plain=plain,
        p_text=p_text,
        percent=percent,
        metric_name=metric_name,
        listed=listed,
        tone=tone,
        axis_name=axis_name,
        unbroken=_unbroken,
    )
    environment.globals.update(interval=interval, count=count)
    return environment


def _unbroken(sentence: str) -> str:
    """With intervals, signs and p that no line breaks in the middle of."""
    return re.sub(
        r"\[[^\]\s]+, [^\]\s]+\]|p [=<] [\d.]+| [−=] (?=[+−\d])",
        lambda match: match[0].replace(" ", "\u00a0"),
        sentence,
    )


def _trials(study: Study) -> list[dict[str, Any]]:
    """Rows of the table of all trials, in the sweep's order."""
    return [
        {
            "index": row["index"],
            "trial_id": row["trial_id"],
            "label": study.labels[row["trial_id"]],
            "axes": [axis_value("", known(row[axis])) for axis in study.axes],
            "status": row["status"],
            "selected": row["trial_id"] == study.selected,
            "loss": number(row["final_loss"]),
            "seconds": number(row["train_seconds"]),
            "dev": study.contrast(row["trial_id"], control=study.control, split="dev"),
        }
        for row in study.results.trials.to_dict("records")
    ]


def _curves(study: Study, thumbnails: Thumbnails) -> list[dict[str, Any]]:
    """Each family of arms: its figure, and one pair of images along it."""
    return [
        {
            "name": curve.family.name,
            "axis": param_name(curve.family.axis),
            "several": len(curve.family.lines) > 1,
            "figure": curve.figure,
            "row": family_row(study, curve.family, thumbnails),
        }
        for curve in family_curves(study)
    ]


def _unseen(study: Study) -> int:
    """How many arms the rows of images leave out."""
    return len(study.sweep["arms"]) - len(shown_arms(study))


def _failures(study: Study) -> list[tuple[str, str, str]]:
    """What did not come about: (what, status, reason). Trials first, then controls that have no numbers."""
    found = [
        (study.labels[row["trial_id"]], row["status"], text(row["reason"]) or "no reason was recorded")
        for row in study.results.trials.to_dict("records")
        if row["status"] != "completed"
    ]
    for c in study.against(split=study.split):
        if c.difference is None:
            found.append((f"{c.arm} against {c.control}", "no number", c.reason or "no reason was recorded"))
    return found


def _latents(study: Study) -> tuple[bool, int] | None:
    """Whether the selected trial's arms started from the same latents, and on how many (prompt, seed)."""
    if study.selected is None:
        return None
    arms = study.results.arms.query("trial_id == @study.selected")["arm_id"]
    images = study.results.images
    kinds = (
        images[images["arm_id"].isin(arms)]
        .groupby(["prompt_id", "seed"])["latent_hash"]
        .nunique(dropna=False)
    )
    return bool((kinds == 1).all()), len(kinds)
