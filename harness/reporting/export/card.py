"""The model card: the adapter, its scores against controls, and its use."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.config.loading.files import visible
from harness.config.schema.adapter import OftAdapter, TextualInversion
from harness.config.schema.evaluation import negative_text
from harness.config.schema.model import EmojiModel
from harness.reporting.blind_spots import blind_spots
from harness.reporting.export.evidence import Evidence
from harness.reporting.export.subject import Subject, portable
from harness.reporting.export.usage import usage_text
from harness.results.claim import claim
from harness.results.contrast import Contrast, is_own
from harness.results.format import (
    MISSING,
    code,
    count,
    interval,
    markdown,
    p_clause,
    p_text,
    plain,
    signed,
)
from harness.results.guidance import guidance_text, match_text
from harness.results.judges import second_opinions
from harness.results.study import Study

SHEET, PICTURES = "contact_sheet.png", "images"
SDXL = "stabilityai/stable-diffusion-xl-base-1.0"
RANDOM_LICENCE = "The base has random weights; its images are noise, and the adapter is for measuring alone."


@dataclass(frozen=True, kw_only=True)
class Example:
    """An image that the hub shows beside the card."""

    prompt: str
    file: str


def card(
    subject: Subject, evidence: Evidence, *, files: Mapping[str, str], examples: Sequence[Example]
) -> str:
    """The card as Markdown. `files` maps the adapter's files to their sha256."""
    parts = [
        _front_matter(subject, evidence, examples),
        f"# {subject.name}",
        _summary(subject),
        "## What was measured",
        _findings(subject, evidence),
        _table(evidence),
        _matched(subject),
        " ".join(blind_spots(subject.results)),
        _images(evidence),
        "## How to use it",
        usage_text(subject, evidence, files),
        "## How it was trained",
        _settings(subject),
        "## Files",
        "\n".join(["| file | sha256 |", "|---|---|", *(f"| `{name}` | `{files[name]}` |" for name in files)]),
        "`trial.json` holds the whole configuration, the versions and these hashes. The header of each "
        "file says "
        "the same, and what A1111 and kohya's tools show of a LoRA.",
        "## Licence",
        _licence(subject),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


NAMES = {"lora": "A LoRA", "rslora": "An rsLoRA", "dora": "A DoRA", "loha": "A LoHa", "lokr": "A LoKr"}


def _front_matter(subject: Subject, evidence: Evidence, examples: Sequence[Example]) -> str:
    is_word = isinstance(subject.config.adapter, TextualInversion)
    negative = _arm(subject, evidence)["negative"]
    front: dict[str, Any] = {
        "base_model": subject.base,
        "base_model_relation": "adapter" if subject.base else None,
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "license": _license_tag(subject),
        "instance_prompt": subject.word,
        "tags": [
            *("text-to-image", "diffusers"),
            *([] if isinstance(subject.config.model, EmojiModel) else ["stable-diffusion-xl"]),
            *(["textual_inversion"] if is_word else ["lora", "template:sd-lora"]),
            *("negative-prompt", "lora-sweep-harness"),
        ],
        "widget": [
            {
                "text": example.prompt,
                "parameters": {"negative_prompt": negative_text(negative, example.prompt)},
                "output": {"url": example.file},
            }
            for example in examples
        ],
    }
    # JSON is YAML, and quotes whatever a prompt may hold. So do YAML's escapes of what is not printed.
    lines = [
        f"{key}: {visible(json.dumps(value, ensure_ascii=False))}" for key, value in front.items() if value
    ]
    return "\n".join(["---", *lines, "---"])


def _arm(subject: Subject, evidence: Evidence) -> dict[str, Any]:
    arm: dict[str, Any] = next(a for a in subject.results.sweep["arms"] if a["name"] == evidence.arm)
    return arm


def _summary(subject: Subject) -> str:
    recipe, adapter, training = subject.trained
    match adapter:
        case TextualInversion():
            what = f"A textual inversion of {adapter.vectors} vectors in each text encoder"
        case OftAdapter():
            what = f"An OFT with blocks of {adapter.block_size}"
        case _:
            what = f"{NAMES[adapter.kind]} of rank {adapter.rank}"
    trained_on = recipe.count - training.holdout if recipe.count else None
    images = count(trained_on, "image") if trained_on else "images"
    varied = ", ".join(code(f"{axis}: {_value(value)}") for axis, value in subject.varied.items())
    return (
        f"{what} for {subject.base_text}, trained for {count(training.steps, 'step')} on {images} of "
        f"the recipe {code(subject.recipe_text)} under the prompt {code(training.prompt)}.\n\n"
        f"It is trial {subject.index}{f' ({varied})' if varied else ''} of the sweep "
        f"`{subject.results.sweep['name']}`, which asks: *{markdown(subject.results.sweep['question'])}*"
    )


def _findings(subject: Subject, evidence: Evidence) -> str:
    headline = evidence.headline
    prompt = "held-out test prompt" if evidence.split == "test" else "dev prompt"
    if headline is None or headline.difference is None:
        reason = "it was not compared" if headline is None else headline.reason
        verdict = f"Nothing can be said of {evidence.primary} against `{evidence.control}`: {reason}."
    else:
        study = Study(subject.results)
        verdict = _verdict(study, evidence, headline, prompt) + " " + second_opinions(study, headline)
    caution = (
        ""
        if evidence.split == "test"
        else " Trials are selected on these prompts, and the best of many looks better than it is."
    )
    return (
        f"{verdict}{caution}\n\nThe arm `{evidence.arm}`: {_arm_text(subject, evidence)}. Each image is "
        "compared with the control's of the same prompt and seed, which started from the same latents; "
        "intervals are over prompts, and a control with a difference of its own shows what the adapter alone "
        "does not explain."
    )


def _verdict(study: Study, evidence: Evidence, headline: Contrast, prompt: str) -> str:
    decimals = evidence.decimals[headline.metric]
    limits = "no interval" if headline.low is None else interval(headline.low, headline.high, decimals)
    primary = [c for c in evidence.contrasts if c.metric == evidence.primary]
    found = claim(study, headline, primary)
    finds = ""
    if headline.detectable is not None:
        finds = f" This design finds a true difference of {plain(headline.detectable, decimals)} in 80 %."
    return (
        f"**{found[0].upper()}{found[1:]}.** Against `{headline.control}` {headline.metric} differs by "
        f"{signed(headline.difference, decimals)} ({limits}, {p_clause(headline.p)}) on "
        f"{count(headline.n_prompts, prompt)}.{finds}"
    )


def _arm_text(subject: Subject, evidence: Evidence) -> str:
    arm, sampler = _arm(subject, evidence), subject.results.sweep["sampler"]
    merged = f", merged by {arm['merge']['method']}" if arm["merge"] else ""
    return (
        f"{' and '.join(map(_acting, arm['adapters']))}{merged}, negative prompt {code(arm['negative'])}, "
        f"guidance {guidance_text(arm, sampler)}, {', '.join(_sampled(sampler))}"
    )


def _sampled(sampler: Mapping[str, Any]) -> Iterator[str]:
    yield count(sampler["steps"], "step")
    if sampler["scheduler"] is not None:
        yield f"`{sampler['scheduler']}`"
    if sampler["guidance_rescale"]:
        yield f"guidance rescale {sampler['guidance_rescale']:g}"
    if sampler["size"] is not None:
        yield "{} × {} pixels".format(*sampler["size"])
    if sampler["refiner_start"] is not None:
        yield f"the refiner after {100 * sampler['refiner_start']:g} % of the noise schedule"


def _acting(adapter: Mapping[str, Any]) -> str:
    what = "this adapter" if is_own(adapter) else "another adapter"
    average = " (its average)" if adapter["weights"] == "ema" else ""
    where = "both guidance branches" if adapter["branch"] == "both" else f"the {adapter['branch']} branch"
    return f"{what}{average} at scale {adapter['scale']:g} on {where}"


def _table(evidence: Evidence) -> str:
    if not evidence.contrasts:
        return ""
    confidence = f"{100 * evidence.contrasts[0].confidence:g} % interval"
    head = ["metric", "against", f"`{evidence.arm}`", "control", "difference", confidence, "p"]
    head += ["prompts", "pairs", "verdict"]
    lines = [
        f"| {' | '.join(head)} |",
        f"|{'---|' * len(head)}",
        *(_row(contrast, evidence.decimals[contrast.metric]) for contrast in evidence.contrasts),
    ]
    return "\n".join(lines) + (
        "\n\nDifference: arm − control. ↑ higher is better, ↓ lower is better; without an arrow the "
        "metric has no "
        "better direction. p is adjusted over trials and arms (max-T)."
    )


def _matched(subject: Subject) -> str:
    """What is known of controls whose guidance was searched for."""
    arms = [arm for arm in subject.results.sweep["arms"] if arm["match"]]
    return "\n".join(f"- `{arm['name']}`: {markdown(match_text(arm))}" for arm in arms)


def _row(c: Contrast, decimals: int) -> str:
    arrow = {True: " ↑", False: " ↓", None: ""}[c.higher_is_better]
    means = [plain(c.mean_arm, decimals), plain(c.mean_control, decimals)]
    cells = [f"{c.metric}{arrow}", f"`{c.control}`", *means, signed(c.difference, decimals)]
    cells += [interval(c.low, c.high, decimals), p_text(c.p), str(c.n_prompts), str(c.n_pairs)]
    cells.append(c.finding + (f" ({c.note})" if c.note and c.difference is not None else ""))
    if c.difference is None and c.reason:
        cells[4] = f"{MISSING} ({c.reason})"
    return f"| {' | '.join(cells)} |"


def _images(evidence: Evidence) -> str:
    if not evidence.pairs:
        return ""
    shown = (
        "every pair"
        if len(evidence.pairs) == evidence.n_pairs
        else f"{len(evidence.pairs)} of {evidence.n_pairs} "
        "pairs, evenly spread from the best difference to the worst"
    )
    return (
        f"![Images of the same prompt and seed in each arm]({SHEET})\n\n{shown[0].upper()}{shown[1:]}, "
        "best first; "
        "the images of a row started from the same latents. In brackets the difference from "
        f"`{evidence.control}`."
    )


def _settings(subject: Subject) -> str:
    dumped = portable(subject.config.model_dump(mode="json", exclude_none=True))
    rows = [f"| `{name}` | {_cell(value)} |" for name, value in _flat(dumped, "")]
    versions = ", ".join(
        f"{name} {version}"
        for name, version in subject.results.sweep["versions"].items()
        if version != "not installed"
    )
    return "\n".join(["| setting | value |", "|---|---|", *rows]) + f"\n\nWith {versions}."


def _flat(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _cell(value: Any) -> str:
    """A value inside a table, where a bar would end the cell."""
    text = ", ".join(map(str, value)) if isinstance(value, list) else _value(value)
    return markdown(text)


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _license_tag(subject: Subject) -> str | None:
    if isinstance(subject.config.model, EmojiModel):
        return "mit"
    return "openrail++" if subject.base == SDXL else None


def _licence(subject: Subject) -> str:
    model = subject.config.model
    if isinstance(model, EmojiModel):
        return "MIT, as the embedded model and the images it was trained on."
    if model.source == "random":
        return RANDOM_LICENCE
    terms = " (CreativeML Open RAIL++-M)" if subject.base == SDXL else ""
    return (
        f"An adapter is a derivative of its base: the licence of {subject.base_text}{terms} applies to "
        "its use. "
        "Its publisher also answers for the rights in the training images, where they were not "
        "drawn by "
        "the base itself."
    )
