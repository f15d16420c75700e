"""The ledger of looks at test prompts, kept in the store beside its sweeps and never rewritten.

Test prompts are a budget: a second primary metric, control, margin or selected trial on the same prompts is a
second chance to find something. What was looked at first is what was registered, and alone is confirmatory;
eight analyses of the same images, each at its own 2.5 %, find something in 15 to 17 %.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

from harness.config.plan.plan import prompt_id
from harness.config.schema.base import fingerprint
from harness.results.headline import verdict
from harness.results.study import Study
from harness.store.artifact import read_json, write_json
from harness.store.workspace import Workspace

LEDGER = ".looks"  # a folder among those of the sweeps, none of which is hidden


@dataclass(frozen=True, kw_only=True)
class Look:
    """One analysis of test prompts: what was compared, and what it showed."""

    time: str  # ISO 8601, UTC
    sweep: str
    prompts: tuple[str, ...]  # ids of the sweep's test prompts
    primary: str
    control: str
    margin: float | None
    confidence: float
    arm: str
    trial_id: str
    difference: float
    low: float | None
    high: float | None
    p: float | None
    verdict: str
    headline: str

    @property
    def key(self) -> str:
        """The same for the same analysis of the same prompts: a sweep run again looks no second time."""
        asked = ("prompts", "primary", "control", "margin", "confidence", "arm", "trial_id")
        return fingerprint("look", **{name: getattr(self, name) for name in asked})


def record(workspace: Workspace, study: Study) -> list[dict[str, Any]]:
    """Every look so far at any of the study's test prompts up to its own, which is the last; noted if new.

    Empty where the selected trial has no number on test prompts. A file that cannot be read may have been a
    look at these prompts: it counts as one before all others, as `{"damaged": its path}`.
    """
    main = study.contrast(study.selected, control=study.control, split="test")
    if main is None or main.difference is None or study.split != "test":
        return []
    analysis = study.sweep["analysis"]
    own = Look(
        time=datetime.now(UTC).isoformat(timespec="microseconds"),
        sweep=study.sweep["name"],
        prompts=tuple(sorted(prompt_id(p["text"]) for p in study.sweep["prompts"] if p["split"] == "test")),
        primary=study.primary,
        control=study.control,
        margin=analysis["margin"],
        confidence=analysis["confidence"],
        arm=study.arm,
        trial_id=main.trial_id,
        difference=main.difference,
        low=main.low,
        high=main.high,
        p=main.p,
        verdict=main.finding,
        headline="",
    )
    known, damaged = _read(workspace)
    new = own.key not in known
    own = known.get(own.key, own)
    before = sorted(
        (look for look in known.values() if set(look.prompts) & set(own.prompts) and look.key != own.key),
        key=lambda look: (look.time, look.key),
    )
    if not new:
        before = [look for look in before if (look.time, look.key) < (own.time, own.key)]
    unread = [{"damaged": f"{LEDGER}/{name}"} for name in damaged if name != f"{own.key}.json"]
    looks: list[dict[str, Any]] = [*unread, *(asdict(look) for look in (*before, own))]
    if new:
        sweep = {**study.sweep, "looks": looks}
        own = replace(own, headline=verdict(Study(replace(study.results, sweep=sweep))).headline)
        looks[-1] = asdict(own)
        folder, name = workspace.sweep(LEDGER), f"{own.key}.json"
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / name, looks[-1])
        workspace.upload_sweep(LEDGER, [name])
    return looks


def _read(workspace: Workspace) -> tuple[dict[str, Look], list[str]]:
    """The looks of the store by their keys, and the names of files that hold none."""
    folder = workspace.fetch_sweep(LEDGER)
    found: dict[str, Look] = {}
    damaged = []
    for file in sorted(folder.glob("[!.]*")) if folder.is_dir() else ():
        try:
            look = _look(read_json(file))
            if file.name != f"{look.key}.json":
                raise ValueError("another look than its name says")
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            damaged.append(file.name)
        else:
            found[look.key] = look
    return found, damaged


def _look(content: Mapping[str, Any]) -> Look:
    return Look(**{**content, "prompts": tuple(content["prompts"])})
