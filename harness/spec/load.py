"""From a sweep's YAML to one frozen specification. Faults of the text stop here, before any work."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from harness.errors import SpecError
from harness.spec.arm_axes import expanded_arms
from harness.spec.axes import WHOLE_SECTIONS, check_axes_as_written, check_trials, checked_axes
from harness.spec.combinations import check_combinations
from harness.spec.expand import adapter_trial
from harness.spec.local_files import with_local_files
from harness.spec.messages import faults
from harness.spec.points import sample_trials
from harness.spec.prompt_files import read_prompts, with_split
from harness.spec.sweep import SweepSpec
from harness.spec.trial import TrialSpec
from harness.spec.yaml_file import parse, read_yaml


def load_sweep(path: Path, overrides: Sequence[str] = ()) -> SweepSpec:
    """Read, complete and check a sweep. Prompts are read from their file, digests are filled in.

    `overrides` are `key=value` with the value in YAML: `training.seed=3`, `axes.adapter.rank=[4, 8]`.
    Relative paths, in overrides too, are relative to the sweep's file.

    Raises:
        SpecError: one line per fault, each beginning with the file's name.
    """
    raw = read_yaml(path)
    try:
        if not isinstance(raw, dict):
            raise SpecError("must be a mapping, as name: value")
        for override in overrides:
            raw = _overridden(raw, override)
        return _loaded(raw, path.parent)
    except SpecError as error:
        raise SpecError("\n".join(f"{path}: {line}" for line in str(error).splitlines())) from error


def _loaded(raw: dict[str, Any], folder: Path) -> SweepSpec:
    raw = _with_prompts(_with_metric_kinds(raw), folder)
    if isinstance(raw.get("arms"), list):
        raw = {**raw, "arms": expanded_arms(raw["arms"])}
    check_axes_as_written(raw.get("axes"))
    sweep = _validated(raw)
    sweep = SweepSpec.model_validate({**sweep.model_dump(mode="json"), "axes": checked_axes(sweep)})
    sweep = with_local_files(sweep, folder).with_meant_objectives()
    check_trials(sweep)
    check_combinations(sweep)
    _check_prompt_lengths(sweep)
    return sweep


def _overridden(raw: dict[str, Any], override: str) -> dict[str, Any]:
    """A copy with one `key=value` applied. Below `axes`, the rest of the key is the axis' dotted name."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise SpecError(f"--set {override}: must be key=value")
    value = parse(text, source=f"--set {key}")
    steps = key.split(".", 1) if key.startswith("axes.") else key.split(".")
    return _with(raw, steps, value, key)


def _with(raw: Any, steps: Sequence[str], value: Any, key: str) -> dict[str, Any]:
    if not isinstance(raw, dict | None):
        raise SpecError(f"--set {key}: {steps[0]!r} lies below a list or a plain value; set that whole")
    raw = raw or {}
    head, *rest = steps
    return {**raw, head: _with(raw.get(head), rest, value, key) if rest else value}


def _with_metric_kinds(raw: dict[str, Any]) -> dict[str, Any]:
    """A metric given by its bare name is that kind without settings."""
    metrics = raw.get("metrics")
    if not isinstance(metrics, list):
        return raw
    return {**raw, "metrics": [{"kind": m} if isinstance(m, str) else m for m in metrics]}


def _with_prompts(raw: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Prompts read from their file, each with a split."""
    prompts = raw.get("prompts")
    if isinstance(prompts, str):
        try:
            prompts = read_prompts(folder / Path(prompts).expanduser())
        except SpecError as error:
            raise SpecError(f"prompts: {error}") from error
    if not isinstance(prompts, list):
        return raw
    return {**raw, "prompts": [with_split(prompt) for prompt in prompts]}


def _validated(raw: dict[str, Any]) -> SweepSpec:
    """The sweep's own fields checked. A section that an axis replaces whole need not be given beside it."""
    lent = {name: values[0] for name, values in _whole_axes(raw).items() if name not in raw}
    for name, values in _whole_axes(raw).items():
        if name in raw and raw[name] not in values:
            raise SpecError(
                f"{name} is used by no trial, since axes.{name} replaces it; remove it or add it there"
            )
    try:
        return SweepSpec.model_validate({**raw, **lent})
    except ValidationError as error:
        lines = []
        for fault in faults(error, SweepSpec):
            section = fault.name.partition(".")[0]
            at = f"axes.{section}[0]" if section in lent else section
            lines.append(fault.line(at + fault.name.removeprefix(section)))
        raise SpecError("\n".join(lines)) from None


def _whole_axes(raw: dict[str, Any]) -> dict[str, list[Any]]:
    axes = raw.get("axes")
    if not isinstance(axes, dict):
        return {}
    return {name: axes[name] for name in WHOLE_SECTIONS if isinstance(axes.get(name), list) and axes[name]}


def _check_prompt_lengths(sweep: SweepSpec) -> None:
    """No text is longer than a model's tokenizer takes; the rest of it would be dropped without a word."""
    from harness.models.prompts import check_prompt_lengths

    specs = list(sample_trials(sweep))
    for model in dict.fromkeys(spec.model for spec in specs):
        for where, texts in _texts(sweep, [spec for spec in specs if spec.model == model]).items():
            try:
                check_prompt_lengths(model, dict.fromkeys(texts))
            except SpecError as error:
                raise SpecError(f"{where}: {error}") from error


def _texts(sweep: SweepSpec, specs: Sequence[TrialSpec]) -> dict[str, list[str]]:
    """Every text that the model of these trials will encode, by where it stands."""
    others = [
        (f"arms.{arm.name}.adapters[{place}]", adapter_trial(spec, adapter))
        for arm in sweep.arms
        for place, adapter in enumerate(arm.adapters)
        if adapter.recipe is not None
        for spec in specs
    ]
    texts: dict[str, list[str]] = {
        "prompts": [prompt.text for prompt in sweep.prompts],
        **{f"arms.{arm.name}.negative": [arm.negative] for arm in sweep.arms},
    }
    for where, spec in [("", spec) for spec in specs] + others:
        section = f"{where}." if where else ""
        prior = spec.training.prior
        texts.setdefault(f"{section}training.prompt", []).append(spec.training.prompt)
        texts.setdefault(f"{section}recipe", []).extend(spec.recipe.texts)
        if prior is not None:
            texts.setdefault(f"{section}training.prior", []).extend([prior.prompt, *prior.recipe.texts])
    return texts
