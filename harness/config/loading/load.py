"""From a sweep's YAML to one frozen `SweepConfig`, with the axes of its arms expanded.

Errors in the file stop here, before any work.
"""

import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from harness.config.loading.check_axes import (
    WHOLE_SECTIONS,
    check_axes_as_written,
    check_distinct,
    raise_if,
    validated_trials,
    with_checked_axes,
    with_checked_values,
)
from harness.config.loading.check_named_files import check_adapters, check_captions, check_models, check_words
from harness.config.loading.check_sweep import (
    check_combinations,
    check_disjoint_prompts,
    check_prompt_lengths,
    check_prompt_syntax,
)
from harness.config.loading.files import one_line, parse, read_prompts, read_yaml, user_path, with_splits
from harness.config.loading.local_files import LocalFiles, with_adapter_files
from harness.config.loading.messages import faults, show, told, truths
from harness.config.loading.prompt_syntax import from_a1111
from harness.config.plan.axes import PointsAndTrials, require_enough_points, require_few_enough_points
from harness.config.plan.controls import with_controls
from harness.config.plan.plan import Plan, expand
from harness.config.schema.evaluation import ArmConfig, Controls, SamplerConfig
from harness.config.schema.search import OptunaSearch, ValueRange, conditions, values_of
from harness.config.schema.sweep import SweepConfig
from harness.errors import ConfigError

Content = dict[str, Any]
MISSING = object()  # null is a value


def expanded_arms(arms: Sequence[Any]) -> list[Any]:
    """The raw arms, each that has `axes` replaced by one arm per point, the last axis fastest.

    Raises:
        ConfigError: an axis names nothing in the arm, has no values, or a value that is not allowed there.
    """
    return [point for arm in arms for point in (_points(arm) if _has_axes(arm) else [arm])]


def _has_axes(arm: Any) -> bool:
    return isinstance(arm, dict) and "axes" in arm


def _points(arm: Content) -> list[Content]:
    name, axes = arm.get("name"), arm["axes"]
    where = f"arms.{name}.axes"
    if not isinstance(axes, dict) or not axes:
        raise ConfigError(f"{where}: must be a mapping, as {{adapters.0.scale: [0.5, 1]}}")
    for dotted, values in axes.items():
        if not isinstance(values, list) or not values:
            raise ConfigError(f"{where}.{dotted}: must be a list of at least 1")
    rest = {key: value for key, value in arm.items() if key != "axes"}
    return [
        _point(rest, dict(zip(axes, values, strict=True)), where)
        for values in itertools.product(*axes.values())
    ]


def _point(arm: Content, params: Content, where: str) -> Content:
    family = arm.get("name")
    if {"name", "family", "params"} & params.keys():
        raise ConfigError(f"{where}: a name is not varied; allowed: negative, guidance, adapters.0.scale, …")
    labels = {dotted.rpartition(".")[2]: value for dotted, value in params.items()}
    if len(labels) < len(params):  # two adapters' scales
        labels = dict(params)
    point: Any = {**arm, "name": "-".join([str(family), *_words(labels)]), "family": family, "params": labels}
    for dotted, value in params.items():
        try:
            point = _with(point, dotted.split("."), value, places=True)
        except LookupError as error:
            raise ConfigError(
                f"{where}.{dotted}: there is no {error.args[0]!r}; "
                "an adapter is named by its place, as adapters.0.scale"
            ) from error
    try:
        ArmConfig.model_validate(point)
    except ValidationError as error:
        lines = [fault.line(fault.name) for fault in faults(error, ArmConfig)]
        raise ConfigError("\n".join(f"{where}: {show(params)}: {line}" for line in lines)) from None
    return dict(point)


def _words(labels: Content) -> list[str]:
    """What a name is made of: letters, digits and . _ - alone."""
    pairs = itertools.chain.from_iterable(labels.items())
    return [re.sub(r"[^A-Za-z0-9_.-]+", "_", str(word))[:24] for word in pairs]


def load_sweep(path: Path, overrides: Sequence[str] = ()) -> SweepConfig:
    """Read, complete and check a sweep. Prompts are read from their file, digests are filled in.

    `overrides` are `key=value` with the value in YAML: `training.seed=3`, `axes.adapter.rank=[4, 8]`.
    Relative paths, in overrides too, are relative to the sweep's file.

    Raises:
        ConfigError: one line per fault, each beginning with the file's name.
    """
    return _read(path, overrides)[0]


def load_plan(path: Path, overrides: Sequence[str] = (), *, download: bool = False) -> Plan:
    """The plan of a sweep read as by `load_sweep`, made from the very trials that were checked.

    With `download` adapters of the hub are fetched, so that they are checked like files.
    """
    return expand(*_read(path, overrides, download=download))


def _read(
    path: Path, overrides: Sequence[str], *, download: bool = False
) -> tuple[SweepConfig, PointsAndTrials]:
    raw = read_yaml(path)
    try:
        if not isinstance(raw, dict):
            raise ConfigError("must be a mapping, as name: value")
        for override in overrides:
            raw = _overridden(raw, override)
        return _loaded(raw, path.parent, download=download)
    except ConfigError as error:
        raise ConfigError(told(one_line(path), str(error).split("\n"))) from error


def _loaded(raw: dict[str, Any], folder: Path, *, download: bool) -> tuple[SweepConfig, PointsAndTrials]:
    """The sweep and its trials, each validated once. All checks look at the same list."""
    raw = with_adapter_files(_with_prompts(_with_metric_kinds(raw), folder), folder)
    if isinstance(raw.get("arms"), list):
        raw = _with_controls({**raw, "arms": expanded_arms(raw["arms"])})
    if raw.get("prompt_syntax") == "a1111":
        raw = _translated(raw)
    check_axes_as_written(raw.get("axes"))
    sweep = with_checked_axes(_validated(raw))
    require_few_enough_points(sweep)
    files = LocalFiles(folder)
    try:
        filled = files.filled(sweep)
    except ConfigError:
        with_checked_values(sweep)  # a fault of the text is told before one of a file
        raise
    sweep, corners = with_checked_values(filled)
    sweep = sweep.with_meant_objectives()
    require_enough_points(sweep)
    trials = validated_trials(sweep, corners)
    # Where more points are to come, the corners show what they could be.
    samples = [*trials, *corners] if isinstance(sweep.search, OptunaSearch) else trials
    raise_if(files.check_digests(sweep, samples))
    configs = [config for _, config in samples]
    raise_if(check_models(configs))
    raise_if(_beside_their_axes(raw, sweep))
    raise_if(check_distinct(sweep, trials))
    raise_if(check_combinations(sweep, samples))
    raise_if(check_disjoint_prompts(sweep, samples))
    raise_if(check_prompt_syntax(sweep, samples))
    raise_if(check_words(sweep, samples))
    raise_if(check_prompt_lengths(sweep, samples))
    raise_if(check_adapters(sweep, configs, download=download))
    raise_if(check_captions(sweep.arms, configs))
    return sweep, trials


def _with_controls(raw: dict[str, Any]) -> dict[str, Any]:
    """The sweep with the arms that `controls` adds; as it is where the sweep's validation will refuse it."""
    if raw.get("controls") is None:
        return raw
    try:
        controls = TypeAdapter[Controls](Controls).validate_python(raw["controls"])
        given = [ArmConfig.model_validate(arm) for arm in raw["arms"]]
        sampler = SamplerConfig.model_validate(raw.get("sampler") or {})
    except ValidationError:
        return raw
    arms = with_controls(given, controls, sampler)
    by_hand = iter(raw["arms"])  # as they are written, so that a fault names what was written
    return {
        **raw,
        "arms": [arm.model_dump() if arm.added else next(by_hand) for arm in arms],
    }


def _overridden(raw: dict[str, Any], override: str) -> dict[str, Any]:
    """A copy with one `key=value` applied. Below `axes`, the rest of the key is the axis' dotted name."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {override}: must be key=value")
    value = parse(text, source=f"--set {key}")
    steps = key.split(".", 1) if key.startswith("axes.") else key.split(".")
    try:
        return dict(_with(raw, steps, value))
    except LookupError as error:
        raise ConfigError(
            f"--set {key}: {error.args[0]!r} lies below a list or a plain value; set that whole"
        ) from error


def _with(raw: Any, steps: Sequence[str], value: Any, *, places: bool = False) -> Any:
    """A copy with one value replaced; null is an empty mapping. With `places`, a number is one in a list.

    Raises LookupError with the step that leads nowhere.
    """
    head, *rest = steps
    if isinstance(raw, dict | None):
        raw = raw or {}
        return {**raw, head: _with(raw.get(head), rest, value, places=places) if rest else value}
    if places and isinstance(raw, list) and head.isdecimal() and int(head) < len(raw):
        place = int(head)
        inner = _with(raw[place], rest, value, places=places) if rest else value
        return [*raw[:place], inner, *raw[place + 1 :]]
    raise LookupError(head)


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
            prompts = read_prompts(user_path(folder, prompts))
        except ConfigError as error:
            raise ConfigError(f"prompts: {error}") from error
    if not isinstance(prompts, list):
        return raw
    return {**raw, "prompts": with_splits(prompts)}


def _translated(raw: dict[str, Any]) -> dict[str, Any]:
    """Prompts and negatives in compel's syntax. A prompt keeps the split that it had as it was written."""

    def translated(section: Any, key: str, where: str) -> Any:
        if not isinstance(section, dict) or not isinstance(section.get(key), str):
            return section
        try:
            return {**section, key: from_a1111(section[key])}
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None

    found = dict(raw)
    for name, key in (("prompts", "text"), ("arms", "negative")):
        if isinstance(raw.get(name), list):
            found[name] = [
                translated(section, key, f"{name}[{place}]") for place, section in enumerate(raw[name])
            ]
    return found


def _validated(raw: dict[str, Any]) -> SweepConfig:
    """The sweep's own fields checked. A section that an axis replaces whole need not be given beside it."""
    lent = {name: values[0] for name, values in _whole_axes(raw).items() if name not in raw}
    for name, values in _whole_axes(raw).items():
        if name in raw and raw[name] not in values:
            raise ConfigError(
                f"{name} is used by no trial, since axes.{name} replaces it; remove it or add it there"
            )
    try:
        sweep = SweepConfig.model_validate({**raw, **lent})
        raise_if(truths(raw, sweep.model_dump()))
        return sweep
    except ValidationError as error:
        lines = []
        for fault in faults(error, SweepConfig):
            section = fault.name.partition(".")[0]
            at = f"axes.{section}[0]" if section in lent else section
            lines.append(fault.line(at + fault.name.removeprefix(section)))
        raise ConfigError("\n".join(lines)) from None


def _beside_their_axes(raw: dict[str, Any], sweep: SweepConfig) -> Iterator[str]:
    """Values that no trial uses, since an axis that is always applied has others."""
    for name, axis in sweep.axes.items():
        given: Any = raw
        for step in name.split("."):
            given = given.get(step, MISSING) if isinstance(given, dict) else MISSING
        if name in WHOLE_SECTIONS or given is MISSING or conditions(axis):
            continue
        values = values_of(axis)
        within = isinstance(axis, ValueRange) and isinstance(given, int | float)
        if not (values[0] <= given <= values[1] if within else given in values):
            yield (
                f"{name}: {one_line(show(given), 80)} is used by no trial, since axes.{name} replaces it; "
                "remove it or add it there"
            )


def _whole_axes(raw: dict[str, Any]) -> dict[str, list[Any]]:
    axes = raw.get("axes")
    if not isinstance(axes, dict):
        return {}
    return {name: axes[name] for name in WHOLE_SECTIONS if isinstance(axes.get(name), list) and axes[name]}
