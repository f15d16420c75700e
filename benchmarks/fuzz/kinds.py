"""The kinds of inputs, and how many of each."""

from collections.abc import Callable

from benchmarks.fuzz.adapters import damaged_adapters
from benchmarks.fuzz.cases import Cases
from benchmarks.fuzz.images import damaged_images, damaged_pngs
from benchmarks.fuzz.stores import damaged_stores
from benchmarks.fuzz.sweeps import mutated_sweeps, yaml_texts

KINDS: dict[str, tuple[Callable[..., Cases], int]] = {
    "sweeps": (mutated_sweeps, 2000),
    "texts": (yaml_texts, 320),
    "adapters": (damaged_adapters, 320),
    "images": (damaged_images, 240),
    "PNG for redraw": (damaged_pngs, 200),
    "tables and manifests": (damaged_stores, 320),
}
