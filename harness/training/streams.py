"""Where every random number of training comes from: a generator of its own for each thing that is drawn.

Nothing but (seed, part, stream, step, row) decides a draw. So a resumed run draws what an uninterrupted one
draws, a shorter run is the beginning of a longer one, a row does not depend on its neighbours or on the
process that works on it, and switching one thing on (random crops, say) leaves all other draws alone.
A row's number counts through all forward passes of its step.
"""

import hashlib
from enum import IntEnum
from functools import lru_cache

import torch


class Part(IntEnum):
    """Which pictures a draw is for. The numbers are part of what training gives: never change one."""

    PICTURES = 0
    PRIOR = 1
    HOLDOUT = 2


class Stream(IntEnum):
    """What is drawn. The numbers are part of what training gives: never change one."""

    ORDER = 0
    TIMESTEP = 1
    POSTERIOR = 2
    NOISE = 3
    OFFSET = 4
    CAPTION = 5
    CROP = 6
    FLIP = 7
    DROPOUT = 8


def counter_seed(seed: int, part: Part, stream: Stream, step: int, row: int) -> int:
    """The 64-bit BLAKE2b of the numbers joined by "/". PyTorch's Mersenne twister uses its lower 32 bits."""
    key = "/".join(str(int(number)) for number in (seed, part, stream, step, row))
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")


def counter_generator(seed: int, part: Part, stream: Stream, step: int, row: int) -> torch.Generator:
    """A fresh CPU generator for one draw."""
    return torch.Generator().manual_seed(counter_seed(seed, part, stream, step, row))


def uniform(seed: int, part: Part, stream: Stream, step: int, row: int) -> float:
    """A number of [0, 1)."""
    generator = counter_generator(seed, part, stream, step, row)
    return float(torch.rand((), generator=generator, dtype=torch.float64))


@lru_cache(maxsize=8)
def epoch_order(seed: int, part: Part, epoch: int, entries: int) -> tuple[int, ...]:
    """The order of one pass through this many entries."""
    generator = counter_generator(seed, part, Stream.ORDER, epoch, 0)
    return tuple(torch.randperm(entries, generator=generator).tolist())


def entry_at(place: int, *, seed: int, part: Part, entries: int) -> int:
    """The entry at this place of the endless sequence of rows: each pass a permutation of all entries."""
    epoch, position = divmod(place, entries)
    return epoch_order(seed, part, epoch, entries)[position]
