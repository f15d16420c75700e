"""How the numbers of a sweep came about: arms in words, method, hashes, and how to run it again."""

import base64
import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.reporting.blind_spots import blind_spots
from harness.results.contrast import is_own, text
from harness.results.format import MISSING, count, duration, listed, percent
from harness.results.guidance import effective_guidance, guidance_text, match_text
from harness.results.study import Study
from harness.results.tables import FACTS

if TYPE_CHECKING:
    from harness.store.workspace import Workspace


ROLES = {
    "sham": "control: sham",
    "other": "control: other adapter",
    "matched": "control: matched guidance",
}


def arm_rows(study: Study) -> list[dict[str, str]]:
    """What each arm is, in words."""
    rows = []
    for arm in study.sweep["arms"]:
        adapters = "; ".join(f"{_who(a)}, {_how(a)}" for a in arm["adapters"])
        rows.append(
            {
                "name": arm["name"],
                "role": _role(study, arm["name"]),
                "negative": arm["negative"],
                "guidance": match_text(arm) if arm["match"] else guidance_text(arm, study.sweep["sampler"]),
                "effective": _effective(study, arm["name"]),
                "adapters": adapters + (f"; {_merged(arm['merge'])}" if arm["merge"] else ""),
            }
        )
    return rows


def _role(study: Study, arm: str) -> str:
    """Of a control that trains an adapter also whether it is a sham, and if not, why."""
    if arm not in study.controls:
        return "adapter"
    if study.arm_config(arm)["post"] is not None:
        return f"control: {study.about(arm)}"
    role = ROLES.get(study.control_kind(arm), "control")
    unlike = [] if role == "control" else study.differences(arm)
    return f"{role}: {listed(unlike)}" if unlike else role


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
    if adapter.get("hub") is not None:
        return f"the hub’s {adapter['hub']['id']}"
    if adapter.get("sham") is not None:
        return "one trained alike on clean images"
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
    if (hub := adapter.get("hub")) is not None:
        name = f", {hub['weight_name']}" if hub["weight_name"] else ""
        return f"{hub['id']} of the hub{name}, revision {hub['revision'] or 'main'}"
    if (sham := adapter.get("sham")) is not None:
        words = ", ".join(sham["keywords"])
        return f"sham: trained like the trial’s on clean images, those of keywords from: {words}"
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


def method(study: Study) -> dict[str, Any]:
    """Counts of prompts, seeds and images, and the confidence, as the page says them."""
    sweep = study.sweep
    splits = [prompt["split"] for prompt in sweep["prompts"]]
    return {
        "n_dev": splits.count("dev"),
        "n_test": splits.count("test"),
        "seeds": [str(seed) for seed in sweep["seeds"]],
        "confidence": f"{100 * sweep['analysis']['confidence']:g}\u202f%",
        "equivalence": f"{100 * (2 * sweep['analysis']['confidence'] - 1):g}\u202f%",
        "alpha": f"{1 - sweep['analysis']['confidence']:.2g}",
        "n_images": len(study.results.images),
    }


def provenance(study: Study, workspace: "Workspace") -> dict[str, Any]:
    """Model, metrics, versions and seeds, and the commands that make and read the sweep again."""
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
        "training_seed": sweep["training"]["seed"] if sweep["training"] else None,
        "analysis_seed": sweep["analysis"]["seed"],
        "host": sweep["host"],
        "finished_at": (sweep["finished_at"] or "")[:16].replace("T", " "),
        "folder": shlex.quote(folder),
        "duration": duration(sweep["seconds"]),
        "versions": sorted(sweep["versions"].items()),
        "adapters": other_adapters(study),
        "blind_spots": blind_spots(study.results),
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


def config_uri(study: Study) -> str:
    """The sweep as it was read, as a link that saves it."""
    return "data:application/json;base64," + base64.b64encode(_config(study).encode()).decode()
