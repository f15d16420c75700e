"""A fixed pool of rendered scenes on disk, so that no training step waits for drawing."""

from __future__ import annotations

import json
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from world import SIDE, World

POOL_SEED = 2024  # scene i is drawn from (POOL_SEED, i // CHUNK); held-out scenes use another seed
CHUNK = 500


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Pictures [n, 64, 64, 3] uint8, n captions, severities [n], subjects and damages of each scene."""

    pictures: NDArray[np.uint8]
    captions: list[str]
    severities: NDArray[np.float32]
    subjects: list[list[str]]
    damages: list[list[str]]
    backdrops: list[str]

    def __len__(self) -> int:
        return len(self.captions)

    def caption_again(self, world: World, row: int, rng: np.random.Generator) -> str:
        """Other words for the same scene, so that a pool holds more captions than scenes."""
        return world.caption(self.subjects[row], self.backdrops[row], self.damages[row], rng)


def _chunk(cache: Path, seed: int, index: int) -> tuple[NDArray[np.uint8], list[dict]]:
    world, rng = World(cache), np.random.default_rng((seed, index))
    pictures, facts = np.empty((CHUNK, SIDE, SIDE, 3), np.uint8), []
    for i in range(CHUNK):
        scene = world.scene(rng)
        pictures[i] = np.asarray(scene.picture)
        facts.append({
            "caption": scene.caption, "severity": scene.severity, "subjects": list(scene.subjects),
            "damages": list(scene.damages), "backdrop": scene.backdrop,
        })  # fmt: skip
    return pictures, facts


def render(
    cache: Path, size: int, seed: int = POOL_SEED, workers: int = 2
) -> tuple[NDArray[np.uint8], list[dict]]:
    """Draw `size` scenes; the same seed gives the same scenes whatever the number of workers."""
    assert size % CHUNK == 0
    count = size // CHUNK
    with ProcessPoolExecutor(workers) as executor:
        chunks = list(executor.map(_chunk, [cache] * count, [seed] * count, range(count)))
    return np.concatenate([c[0] for c in chunks]), [fact for c in chunks for fact in c[1]]


def make(cache: Path, folder: Path, size: int) -> None:
    """Write pictures.npy and scenes.json unless they are there."""
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / "scenes.json").exists():
        return
    pictures, facts = render(cache, size)
    np.save(folder / "pictures.npy", pictures)
    (folder / "scenes.json").write_text(json.dumps(facts))


def as_pool(pictures: NDArray[np.uint8], facts: list[dict]) -> Pool:
    """Columns from rows."""
    return Pool(
        pictures=pictures,
        captions=[f["caption"] for f in facts],
        severities=np.array([f["severity"] for f in facts], np.float32),
        subjects=[f["subjects"] for f in facts],
        damages=[f["damages"] for f in facts],
        backdrops=[f["backdrop"] for f in facts],
    )


def load(folder: Path) -> Pool:
    """Read what `make` wrote; the pictures stay memory-mapped."""
    return as_pool(
        np.load(folder / "pictures.npy", mmap_mode="r"), json.loads((folder / "scenes.json").read_text())
    )


def held_out(cache: Path, size: int = CHUNK, seed: int = 778) -> Pool:
    """Scenes that are not in the pool, for a look while a stage learns; evaluation has yet another seed."""
    return as_pool(*render(cache, size, seed, workers=1))


def as_batch(pictures: NDArray[np.uint8]) -> torch.Tensor:
    """[b, h, w, 3] uint8 -> [b, 3, h, w] float in [-1, 1].

    Not channels last: with bfloat16 on a CPU, normalisation and SiLU then cost more than convolutions gain.
    """
    return torch.from_numpy(np.array(pictures)).permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1
