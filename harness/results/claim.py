"""An arm against every control, in one clause: `better than placebo but worse than baseline`."""

from collections.abc import Sequence
from typing import Literal

from harness.results.contrast import BAD, GOOD, SHOWN, Contrast, Finding
from harness.results.format import listed, plain
from harness.results.likeness import EVERY_NEEDS, NEEDED
from harness.results.study import Study

Tone = Literal["better", "worse", "none", "missing"]
WORST_FIRST: tuple[Finding, ...] = (
    "worse", "lower", "undecided", "missing", "equivalent", "better", "higher",
)  # fmt: skip


def tone(main: Contrast, contrasts: Sequence[Contrast], *, unmet: bool = False) -> Tone:
    """The colour of the answer: better only where no control is shown to be better than the arm.

    `unmet`: of the controls that a gain needs, one is missing or not beaten.
    """
    if main.finding in BAD:
        return "worse"
    beaten = any(c.finding in BAD for c in contrasts)
    return "better" if main.finding in GOOD and not beaten and not unmet else "none"


def claim(study: Study, main: Contrast, contrasts: Sequence[Contrast]) -> str:
    """`this adapter is better than placebo`, with what keeps it from being an answer.

    A gain is one over the baseline and over the placebo at the arm's own guidance, so it is undecided where
    the sweep lacks one of them or it is not shown to be beaten.
    """
    unmet = study.unmet(main, contrasts)
    every = all(study.serving(need, main.arm) for need in EVERY_NEEDS)
    said = f"this adapter is {compared(main, contrasts, study.decimals[study.primary], every=every)}"
    if unlike := study.differences(main.control, main.arm):
        said += f" ({main.control} differs: {listed(unlike)})"
    if absent := [NEEDED[need] for need, names in unmet.items() if not names]:
        said += f", but the sweep has no {listed(absent)}"
    return f"undecided: {said}" if main.finding == "undecided" or unmet else said


def compared(main: Contrast, contrasts: Sequence[Contrast], decimals: int, *, every: bool = True) -> str:
    """The arm against every control, as `better than placebo but worse than baseline`; the main one first.

    `every`: whether the controls are such that "every control" may be said of them.
    """
    findings = [main.finding, *(f for f in WORST_FIRST if f != main.finding)]
    groups = [(f, [c.control for c in contrasts if c.finding == f]) for f in findings]
    groups = [(f, names) for f, names in groups if names]
    if len(groups) == 1 and len(contrasts) > 1 and (every or main.finding not in GOOD):
        return _relation(main, ["every control"], main.finding, decimals, conjunction="or")
    parts = [
        _relation(main, sorted(names, key=lambda name: name != main.control), f, decimals)
        for f, names in groups
    ]
    but = " but " if {main.finding} <= GOOD or {main.finding} <= BAD else ", "
    return parts[0] + (but + listed(parts[1:]) if parts[1:] else "")


def _relation(
    main: Contrast, names: list[str], finding: Finding, decimals: int, *, conjunction: str = "or"
) -> str:
    whom = listed(names, "and" if finding in SHOWN or finding == "equivalent" else conjunction)
    match finding:
        case "equivalent" if main.margin is not None:
            return f"equivalent to {whom} (within ±{plain(main.margin, decimals)})"
        case "equivalent":
            return f"the same as {whom}"
        case "undecided" if main.finding in GOOD:
            return f"not shown to beat {whom}"
        case "undecided":
            return f"not shown to differ from {whom}"
        case "missing":
            return f"not compared with {whom}"
        case _:
            return f"{finding} than {whom}"
