"""Trainings whose settings changed on the way: what they were up to a step, and which run each goes on from.

A run with a history is a pure function of its specification like any other. It goes on from the last snapshot
of its beginning, which is a run of its own, so all runs that begin alike share it.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from itertools import pairwise
from typing import Any

from harness.spec.training import Phase, TrainingSpec

SAME = "same"
PLACES = {name: name for name in Phase.model_fields if name != "until"} | {
    "weight_decay": "optimizer.weight_decay"
}  # the settings that may change on the way, by name: where they stand below `training`

Settings = Mapping[str, Any]


def settings_of(training: TrainingSpec) -> dict[str, Any]:
    """What a training has now of the settings that may change."""
    return {name: reduce(getattr, place.split("."), training) for name, place in PLACES.items()}


def given(phase: Phase) -> dict[str, Any]:
    """The settings that a phase has otherwise than the training has them now."""
    return {name: value for name in PLACES if (value := getattr(phase, name)) != SAME}


def phases(whole: Sequence[tuple[int, Settings]], now: Settings) -> tuple[Phase, ...]:
    """The history of a training that had these settings up to these steps and has others `now`.

    Where nothing changes at a step, there is no phase.
    """
    ends = [*(settings for _, settings in whole), now]
    changes = [
        (until, one)
        for (until, one), (_, next_one) in zip(whole, pairwise(ends), strict=True)
        if one != next_one
    ]
    return tuple(
        Phase(until=until, **{name: value for name, value in settings.items() if value != now[name]})
        for until, settings in changes
    )


def beginning(training: TrainingSpec) -> TrainingSpec | None:
    """The training up to its last change, null where it has none. Raises pydantic.ValidationError."""
    if not training.history:
        return None
    now = settings_of(training)
    *whole, (until, then) = [(phase.until, {**now, **given(phase)}) for phase in training.history]
    raw = training.model_dump()
    for name, value in then.items():
        *sections, last = PLACES[name].split(".")
        reduce(dict.__getitem__, sections, raw)[last] = value
    return TrainingSpec.model_validate({**raw, "steps": until, "history": phases(whole, then)})


def faults(training: TrainingSpec) -> Iterator[str]:
    """What is wrong with a training's history, a line for each fault."""
    history, now = training.history, settings_of(training)
    if not history:
        return
    if training.schedule.depends_on_length:
        yield (
            f"training.history: under a {training.schedule.kind} schedule a rate hangs on how many steps "
            "there will be, so no run is the beginning of another; use schedule.kind: constant"
        )
    ends = [*(phase.until for phase in history), training.steps]
    for place, (one, following) in enumerate(pairwise(ends)):
        if one >= following:
            what = "training.steps" if place + 1 == len(history) else f"history[{place + 1}].until"
            yield f"training.history[{place}].until: {one} must be below {what}, {following}"
    for place, phase in enumerate(history):
        for name, value in given(phase).items():
            if value == now[name]:
                yield (
                    f"training.history[{place}].{name}: is what training.{PLACES[name]} is; leave it out, or "
                    "write same"
                )
    for place, (before, after) in enumerate(pairwise([*map(given, history), {}])):
        if before == after:
            step = history[place].until
            yield f"training.history[{place}]: nothing changes after step {step}; leave it out"


def told(history: Sequence[Phase]) -> str:
    """A history in one line: `learning rate 0.001 to step 50`; empty where there is none."""
    return "; ".join(f"{_values(phase) or 'as now'} to step {phase.until}" for phase in history)


def _values(phase: Phase) -> str:
    return ", ".join(
        f"{name.replace('_', ' ')} {'none' if value is None else f'{value:g}'}"
        for name, value in given(phase).items()
    )
