from collections import Counter

import torch

from harness.diffusion.training.noise import Part, Stream, counter_generator, counter_seed, entry_at


def test_every_part_of_a_key_gives_other_numbers() -> None:
    keys = [
        (seed, part, stream, step, row)
        for seed in (0, 2**62)
        for part in Part
        for stream in Stream
        for step in (1, 2)
        for row in (0, 12)
    ]
    assert len({counter_seed(*key) for key in keys}) == len(keys)


def test_generators_of_neighbouring_keys_are_unrelated() -> None:
    drawn = torch.stack(
        [
            torch.randn(4096, generator=counter_generator(0, Part.PICTURES, Stream.NOISE, step, 0))
            for step in range(20)
        ]
    )
    assert (torch.corrcoef(drawn) - torch.eye(20)).abs().max() < 0.08


def entries(places: range, *, seed: int, count: int) -> list[int]:
    return [entry_at(place, seed=seed, part=Part.PICTURES, entries=count) for place in places]


def test_each_pass_shows_every_entry_once_in_an_order_of_its_own() -> None:
    orders = [entries(range(30 * epoch, 30 * epoch + 30), seed=0, count=30) for epoch in range(3)]
    assert all(sorted(order) == list(range(30)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3


def test_a_batch_larger_than_the_dataset_shows_entries_evenly() -> None:
    assert Counter(entries(range(12), seed=3, count=3)) == {0: 4, 1: 4, 2: 4}
