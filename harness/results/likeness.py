"""In what two arms differ: of which kind a control is beside an arm, and whether a sham is one.

Arms, samplers and trials are mappings, as `sweep.json` and the trials' table have them.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import Any, Literal

from harness.config.schema.evaluation import PROMPT
from harness.results.contrast import is_own
from harness.results.guidance import guidance_text

ControlKind = Literal["sham", "other", "others", "alone", "matched", "guidance", "word", "plain"]
Need = Literal["baseline", "placebo", "matched"]
BETTER_NEEDS: tuple[Need, ...] = ("baseline", "placebo")  # controls of a headline that says "better"
EVERY_NEEDS: tuple[Need, ...] = ("placebo", "matched")  # of one that says "better than every control"
NEEDED: dict[Need, str] = {
    "baseline": "baseline (no negative prompt, no adapter)",
    "placebo": "placebo at the arm's own guidance",
    "matched": "control at a guidance that matches the arm (match)",
}
EXPLAINS: dict[ControlKind, str] = {  # what remains possible where a control is not beaten
    "sham": "an adapter trained in the same way on clean images, as in Self-NPO, does the same, so the gain "
    "cannot be put down to the bad images",
    "other": "another adapter does the same, so the gain cannot be put down to the trial's own",
    "others": "the other adapters without the trial's own do the same, so the gain cannot be put down to "
    "the trial's own",
    "alone": "the trial's own adapter by itself does the same, so the gain cannot be put down to the "
    "adapters together",
    "matched": "guidance alone, as high as gives its images the arm's statistic, does the same, so the gain "
    "cannot be put down to the adapter",
    "guidance": "another guidance alone does the same, so the gain cannot be put down to the adapter",
    "word": "the negative prompt alone does the same, so the gain cannot be put down to the adapter",
    "plain": "generating without any of this does the same",
}
# What differs between bad and clean images of one making, or is a label.
_MAKES_THEM_CLEAN = (
    "recipe.kind", "recipe.name", "recipe.keywords", "recipe.degradations", "recipe.severity", "recipe.path",
    "recipe.digest", "recipe.captioned", "recipe.left_out",
)  # fmt: skip
_CLEAN_KIND = {"keywords": "keywords", "degrade": "plain", "folder": "folder"}
ACTION = ("scale", "branch", "weights")
Arm = Mapping[str, Any]


def control_kind(control: Arm, arm: Arm, *, own: Mapping[str, Any] | None, sampler: Arm) -> ControlKind:
    """What a control holds fixed beside an arm. `own` is the configuration of the trial; None: of no trial.

    A guidance that matches the arm (`matched`), the arm's other adapters without the trial's own (`others`),
    the trial's own without these (`alone`), an adapter trained in the same way on clean images (`sham`) or
    otherwise (`other`), another guidance, the negative words, or nothing.
    """
    if matches(control, arm):
        return "matched"
    if control["adapters"]:
        others = [_source(adapter) for adapter in arm["adapters"] if not is_own(adapter)]
        apart = [adapter for adapter in control["adapters"] if _source(adapter) not in others]
        if not apart:
            return "others"
        if len(control["adapters"]) == 1 and _is_the_trials(control["adapters"][0], own):
            return "alone"
        return "other" if any(unlike_own(adapter, own) for adapter in apart) else "sham"
    if guidance_text(control, sampler) != guidance_text(arm, sampler):
        return "guidance"
    return "word" if control["negative"] else "plain"


def matches(control: Arm, arm: Arm) -> bool:
    """Whether a control's guidance was searched for so that it matches this arm."""
    return control["match"] is not None and control["match"]["arm"] == arm["name"]


def serves(need: Need, control: Arm, arm: Arm, *, sampler: Arm) -> bool:
    """Whether a control is what a headline needs beside an arm.

    A baseline has no negative prompt and no adapter of the trial, at the arm's guidance or the sampler's.
    A placebo is the arm without the trial's own adapter. Where the arm's negative is the image's own prompt,
    that would be no guidance at all, and any negative does.
    """
    others = [adapter for adapter in arm["adapters"] if not is_own(adapter)]
    guidance = guidance_text(control, sampler)
    at_own_guidance = guidance == guidance_text(arm, sampler)
    match need:
        case "baseline":
            plain = {"guidance": None, "guider": None, "guidance_interval": None}
            return (
                control["negative"] == ""
                and control["post"] is None
                and all(adapter in others for adapter in control["adapters"])
                and (at_own_guidance or guidance == guidance_text(plain, sampler))
            )
        case "placebo":
            word = control["negative"] == arm["negative"] or arm["negative"].strip() == PROMPT
            alike = list(control["adapters"]) == others and control["post"] == arm["post"]
            return at_own_guidance and word and alike
        case "matched":
            return matches(control, arm)


def unlike_own(adapter: Mapping[str, Any], own: Mapping[str, Any] | None) -> tuple[tuple[str, Any, Any], ...]:
    """(setting, of this adapter, of the trial's own) of each that keeps an adapter from being a sham of it.

    A sham has the trial's adapter, training, seed, count and prompts, and its images were made alike: those
    of keywords from other words, those of `degrade` without the damage, a folder's from another folder.
    """
    if adapter.get("sham") is not None or own is None:
        return ()
    if adapter["recipe"] is None:
        return (("source", "a file", "trained here"),)
    if own["recipe"] is None:
        return (("source", "trained here", "a file"),)
    theirs = {name: adapter[name] or own[name] for name in ("recipe", "adapter", "training")}
    if _CLEAN_KIND.get(own["recipe"]["kind"]) != theirs["recipe"]["kind"]:
        return (("recipe.kind", theirs["recipe"]["kind"], own["recipe"]["kind"]),)
    left, right = ({**made, "images": _count(made["recipe"])} for made in (theirs, own))
    del right["model"]
    return deviations(left, right, ignoring=_MAKES_THEM_CLEAN)


def _count(recipe: Mapping[str, Any]) -> Any:
    """Number of images."""
    if recipe["kind"] == "keywords":
        return len(recipe["keywords"]) * len(recipe["guidance"])
    return recipe["count"]


def differences(control: Arm, arm: Arm, *, own: Mapping[str, Any] | None, sampler: Arm) -> list[str]:
    """In what a control differs from an arm that is not what it controls for, as `guidance 2, not 3`."""
    found = []
    theirs, ours = (guidance_text(one, sampler) for one in (control, arm))
    if theirs != ours and not matches(control, arm):
        found.append(f"guidance {theirs}, not {ours}")
    if control["post"] != arm["post"]:
        found.append(f"damage {_damage(control)}, not {_damage(arm)}")
    others = [_source(adapter) for adapter in arm["adapters"] if not is_own(adapter)]
    ours_act = next((adapter for adapter in arm["adapters"] if is_own(adapter)), None)
    for adapter in control["adapters"]:
        if _source(adapter) in others or _is_the_trials(adapter, own):
            continue
        unlike = [*unlike_own(adapter, own)]
        if ours_act is not None:
            unlike += [(key, adapter[key], ours_act[key]) for key in ACTION if adapter[key] != ours_act[key]]
        found += [f"{key} {_shown(here)}, not {_shown(there)}" for key, here, there in unlike]
    return found


def _damage(arm: Arm) -> str:
    """As `blur 0.2`."""
    return "none" if arm["post"] is None else "{degrade} {severity:g}".format(**arm["post"])


def _is_the_trials(adapter: Mapping[str, Any], own: Mapping[str, Any] | None) -> bool:
    """Whether a control's adapter is trained as the trial's own is."""
    return own is not None and _source(adapter) == (own["recipe"], *[None] * 4)


def _shown(value: Any) -> str:
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def deviations(
    left: Mapping[str, Any], right: Mapping[str, Any], *, ignoring: Collection[str] = ()
) -> tuple[tuple[str, Any, Any], ...]:
    """(dotted key, value left, value right) of each setting that differs, sorted by key.

    Settings may be nested mappings and sequences. A key in `ignoring` is left out with all below it; a
    setting that one side lacks counts as None there.
    """
    ours, theirs = dict(_leaves(left, "")), dict(_leaves(right, ""))

    def ignored(key: str) -> bool:
        return any(key == name or key.startswith(name + ".") for name in ignoring)

    return tuple(
        (key, ours.get(key), theirs.get(key))
        for key in sorted({*ours, *theirs})
        if ours.get(key) != theirs.get(key) and not ignored(key)
    )


def _leaves(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        items = [(str(name), below) for name, below in value.items()]
    elif isinstance(value, (list, tuple)):
        items = [(str(place), below) for place, below in enumerate(value)]
    else:
        yield key, value
        return
    for name, below in items:
        yield from _leaves(below, f"{key}.{name}" if key else name)


def _source(adapter: Mapping[str, Any]) -> tuple[Any, ...]:
    """What an arm's adapter was made from, whatever its scale and branch."""
    content = adapter["digest"] or adapter.get("hub")
    return adapter["recipe"], adapter.get("sham"), adapter["adapter"], adapter["training"], content
