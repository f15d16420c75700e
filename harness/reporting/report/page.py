"""The page: sections of a study, with arms in words, rendered by a template and written atomically."""

import base64
import json
import os
import shlex
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from harness.errors import WorkspaceError
from harness.reporting.report.data import as_script, page_data
from harness.reporting.report.figures.curves import family_curves, loss_curves
from harness.reporting.report.figures.effects import dose_response, forest, forest_hidden, heatmap
from harness.reporting.report.figures.strip import strips
from harness.reporting.report.images import family_row, image_rows
from harness.reporting.report.layout import param_name, shown_arms
from harness.reporting.report.thumbnails import Cache, Thumbnails
from harness.results.contrast import is_own, known, number, text
from harness.results.format import (
    MISSING,
    axis_name,
    axis_value,
    count,
    duration,
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
from harness.results.guidance import effective_guidance, guidance_text
from harness.results.headline import verdict
from harness.results.study import Study
from harness.results.tables import FACTS
from harness.store.workspace import REPORT

if TYPE_CHECKING:
    from harness.results import Results
    from harness.store.workspace import Workspace


def arm_rows(study: Study) -> list[dict[str, str]]:
    """What each arm is, in words."""
    rows = []
    for arm in study.sweep["arms"]:
        adapters = "; ".join(f"{_who(a)}, {_how(a)}" for a in arm["adapters"])
        rows.append(
            {
                "name": arm["name"],
                "role": "control" if arm["name"] in study.controls else "adapter",
                "negative": arm["negative"],
                "guidance": guidance_text(arm, study.sweep["sampler"]),
                "effective": _effective(study, arm["name"]),
                "adapters": adapters + (f"; {_merged(arm['merge'])}" if arm["merge"] else ""),
            }
        )
    return rows


def _effective(study: Study, arm: str) -> str:
    """Effective guidance of the selected trial's images of an arm, and how much of it is orthogonal."""
    found = effective_guidance(study.results.images, study.arm_id(arm))
    if found is None:
        return MISSING
    return f"{found.guidance:.2f}, {percent(found.orthogonal)} across ({count(found.images, 'image')})"


def other_adapters(study: Study) -> list[str]:
    """Every adapter beside the trials' own, with what it was made from, and every merge; each once."""
    found: dict[str, None] = {}
    for arm in study.sweep["arms"]:
        for adapter in arm["adapters"]:
            if not is_own(adapter):
                found[_origin(adapter)] = None
        if arm["merge"]:
            found[f"{arm['name']}: {_merged(arm['merge'])}"] = None
    return list(found)


def _who(adapter: dict[str, Any]) -> str:
    if is_own(adapter):
        return "the trial’s own"
    if adapter["file"] is not None:
        return f"the file {Path(adapter['file']).name}"
    return f"one trained on {_recipe_name(adapter['recipe'])}"


def _how(adapter: dict[str, Any]) -> str:
    branch = "both branches" if adapter["branch"] == "both" else f"{adapter['branch']} branch"
    averaged = ", averaged weights" if adapter["weights"] == "ema" else ""
    return f"scale {adapter['scale']:g}, {branch}{averaged}"


def _recipe_name(recipe: dict[str, Any]) -> str:
    name = recipe["name"] or recipe["kind"]
    return f"{name} ({recipe['kind']})" if name != recipe["kind"] else str(name)


def _merged(merge: dict[str, Any]) -> str:
    details = [f"{key} {merge[key]:g}" for key in ("density", "seed") if merge[key] is not None]
    return f"merged into one ({', '.join([merge['method'], *details])})"


def _origin(adapter: dict[str, Any]) -> str:
    """Where an adapter that is not the trial's own comes from."""
    if adapter["file"] is not None:
        return f"{Path(adapter['file']).name}, a file, sha256 {(adapter['digest'] or 'unknown')[:12]}"
    recipe = adapter["recipe"]
    images = "" if recipe["kind"] != "folder" else f", images {(recipe['digest'] or 'unknown')[:12]}"
    return f"{_recipe_name(recipe)}{images}: {_settings(adapter)}"


def _settings(adapter: dict[str, Any]) -> str:
    config, training = adapter["adapter"], adapter["training"]
    if config is None:
        what = "an adapter like the trial’s"
    elif config["kind"] == "textual_inversion":
        what = f"textual inversion of {count(config['vectors'], 'vector')} for “{config['word']}”"
    else:
        what = f"{config['kind']} of rank {config['rank']}"
    if training is None:
        return f"{what}, trained like the trial’s"
    return f"{what}, {count(training['steps'], 'step')} on “{training['prompt']}”, seed {training['seed']}"


TEMPLATES = Path(__file__).parent / "templates"
STYLES = ("style.css", "explore.css")
SCRIPTS = ("data", "state", "lightbox", "grid", "picture", "trials", "main")  # in this order, in one scope


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
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            study=study,
            sweep=study.sweep,
            verdict=found,
            strips=strips(study, found.contrasts),
            progress=_progress(study),
            groups=groups,
            every=every,
            forest=forest(study),
            heatmap=heatmap(study),
            found=[],
            dose=dose_response(study),
            trials=_trials(study),
            failures=_failures(study),
            events=events(study.sweep.get("events", [])),
            arms=arm_rows(study),
            curves=curves,
            losses=loss_curves(study),
            hidden=forest_hidden(study),
            unseen=_unseen(study),
            latents=_latents(study),
            method=_method(study),
            provenance=_provenance(study, workspace),
            config_uri=_config_uri(study),
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
    )
    environment.globals.update(interval=interval, count=count)
    return environment


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


def _method(study: Study) -> dict[str, Any]:
    sweep = study.sweep
    splits = [prompt["split"] for prompt in sweep["prompts"]]
    return {
        "n_dev": splits.count("dev"),
        "n_test": splits.count("test"),
        "seeds": [str(seed) for seed in sweep["seeds"]],
        "confidence": f"{100 * sweep['analysis']['confidence']:g}\u202f%",
        "alpha": f"{1 - sweep['analysis']['confidence']:.2g}",
        "n_images": len(study.results.images),
    }


def _provenance(study: Study, workspace: "Workspace") -> dict[str, Any]:
    sweep = study.sweep
    model = sweep["model"]
    source = model["source"] if "source" in model else f"{model['kind']} (embedded)"
    hashes = (
        study.results.scores[["metric", "metric_version", "weights_hash"]]
        .drop_duplicates()
        .to_dict("records")
    )
    where = workspace.address
    if Path(where).is_relative_to(Path.cwd()):  # as its user would type it
        where = str(Path(where).relative_to(Path.cwd()))
    folder = f"{where}/sweeps/{sweep['name']}"
    return {
        "model": source,
        "digest": model["digest"],
        "precision": model.get("precision", "fp32"),
        "training_seed": sweep["training"]["seed"],
        "analysis_seed": sweep["analysis"]["seed"],
        "host": sweep["host"],
        "finished_at": sweep["finished_at"],
        "folder": shlex.quote(folder),
        "duration": duration(sweep["seconds"]),
        "versions": sorted(sweep["versions"].items()),
        "adapters": other_adapters(study),
        "metrics": [{**row, "weights_hash": text(row["weights_hash"])} for row in hashes],
        "rerun": f"harness run {sweep['name']}.json --workspace {shlex.quote(where)}",
        "load": f"from harness import results\nr = results.load({json.dumps(folder)})\n"
        f'r.trials; r.images; r.scores; r.summary; r.pairs(control="{study.control}"); r.wide()',
        "config": _config(study),
    }


def _config(study: Study) -> str:
    config = {key: value for key, value in study.sweep.items() if key not in FACTS}
    return json.dumps(_from_here(config), indent=2, ensure_ascii=False)


def _from_here(value: Any) -> Any:
    """The same with folders below this one as one would type them, not as they lie on one machine."""
    match value:
        case dict():
            return {key: _from_here(inner) for key, inner in value.items()}
        case list():
            return [_from_here(inner) for inner in value]
        case str() if Path(value).is_absolute() and Path(value).is_relative_to(Path.cwd()):
            return str(Path(value).relative_to(Path.cwd()))
        case _:
            return value


def _config_uri(study: Study) -> str:
    return "data:application/json;base64," + base64.b64encode(_config(study).encode()).decode()
