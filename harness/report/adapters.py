"""Arms and their adapters in words: what acts where, how strongly, and where it comes from."""

from pathlib import Path
from typing import Any

from harness.report.study import Study, is_own
from harness.report.wording import count


def arm_rows(study: Study) -> list[dict[str, str]]:
    """What each arm is, in words."""
    rows = []
    for arm in study.sweep["arms"]:
        guidance = study.sweep["sampler"]["guidance"] if arm["guidance"] is None else arm["guidance"]
        adapters = "; ".join(f"{_who(a)}, {_how(a)}" for a in arm["adapters"])
        rows.append(
            {
                "name": arm["name"],
                "role": "control" if arm["name"] in study.controls else "adapter",
                "negative": arm["negative"],
                "guidance": f"{guidance:g}",
                "adapters": adapters + (f"; {_merged(arm['merge'])}" if arm["merge"] else ""),
            }
        )
    return rows


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
    pictures = "" if recipe["kind"] != "folder" else f", pictures {(recipe['digest'] or 'unknown')[:12]}"
    return f"{_recipe_name(recipe)}{pictures}: {_settings(adapter)}"


def _settings(adapter: dict[str, Any]) -> str:
    spec, training = adapter["adapter"], adapter["training"]
    if spec is None:
        what = "an adapter like the trial’s"
    elif spec["kind"] == "textual_inversion":
        what = f"textual inversion of {count(spec['vectors'], 'vector')} for “{spec['word']}”"
    else:
        what = f"{spec['kind']} of rank {spec['rank']}"
    if training is None:
        return f"{what}, trained like the trial’s"
    return f"{what}, {count(training['steps'], 'step')} on “{training['prompt']}”, seed {training['seed']}"
