"""Which folders of a workspace hold stages, and what the builder of each holds while it is at work."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from harness.stage import Stage

LEFT_OVERS: dict[str, tuple[str, ...]] = {  # by kind of claim: what a killed builder may leave behind
    "dataset": ("datasets/.tmp-{}-*",),
    "part": ("parts/*/.tmp-{}-*",),
    "latents": ("latents/{}/.tmp-*",),
    "texts": ("texts/{}/.tmp-*",),
    "run": ("adapters/{}/.tmp-*",),
    "draw": ("images/{}/.tmp-*",),
    "scores": ("scores/*/.tmp-{}-*",),
    "plans": (),
}

LOCKS = ".locks"
SHARES = 8  # of each draw: so many workers at most are at the pictures of one

PlaceKind = Literal["dataset", "part", "latents", "texts", "snapshot", "pictures", "scores"]
FOLDERS: dict[PlaceKind, tuple[str, int]] = {  # and how far below its stages are
    "dataset": ("datasets", 1),
    "part": ("parts", 2),
    "latents": ("latents", 2),
    "texts": ("texts", 2),
    "snapshot": ("adapters", 2),
    "pictures": ("images", 2),
    "scores": ("scores", 2),
}


@dataclass(frozen=True, kw_only=True)
class Place:
    """A folder where a stage is, or was begun. `claim` is what its builder holds."""

    kind: PlaceKind
    stage: Stage
    claim: tuple[str, str]


def claim_of(kind: PlaceKind, path: Path) -> tuple[str, str]:
    """What the builder of this folder, or of the temporary one that it is, holds."""
    name = path.name
    if name.startswith(".tmp-"):
        name = name.removeprefix(".tmp-").rpartition("-")[0]
    match kind:
        case "dataset" | "part" | "scores":
            return kind, name
        case "latents" | "texts":
            return kind, path.parent.name
        case "snapshot":
            return "run", path.parent.name
        case "pictures":
            return "draw", path.parent.name


def locks_of(kind: str, identity: str) -> list[str]:
    """What is locked to hold all of it. A draw is held share by share."""
    if kind == "draw":
        return [share_lock(identity, share) for share in range(SHARES)]
    return [f"{LOCKS}/{kind}-{identity}"]


def share_lock(draw_id: str, share: int) -> str:
    """What is locked to hold one share of a draw."""
    return f"{LOCKS}/draw-{draw_id}-{share}"
