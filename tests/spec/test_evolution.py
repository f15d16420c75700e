"""Who is replaced by whom, and with which values; and which generations are remembered."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from harness.spec.evolution import Became, evolved, population_of, with_remembered_generations
from harness.spec.expand import expand
from harness.spec.scheduler import Member
from harness.spec.sweep import SweepSpec
from tests.spec.example import load

RATE, RANK, OFFSET, GAMMA = (
    "training.learning_rate",
    "adapter.rank",
    "training.noise_offset",
    "training.min_snr_gamma",
)
AXES: dict[str, Any] = {
    RATE: {"low": 1e-5, "high": 1e-2, "log": True},
    OFFSET: {"low": 0.0, "high": 0.4, "step": 0.1},
    GAMMA: [None, 1.0, 5.0],
    RANK: [2, 4, 8],
}
LOSS = {"kind": "validation_loss"}


def eight(folder: Path, **scheduler: Any) -> SweepSpec:
    """Eight members of the example sweep, in their first generation."""
    sweep = load(
        folder,
        axes=AXES,
        search={"kind": "random", "trials": 8},
        training={"steps": 100, "holdout": 1},
        scheduler={"kind": "population", "every": 25, "objective": LOSS, **scheduler},
    )
    return with_remembered_generations(sweep, None)


def following(sweep: SweepSpec, values: list[float | None]) -> tuple[Member, ...]:
    return population_of(evolved(sweep, [Became(value) for value in values])).generations[-1]


def test_the_worst_go_on_from_the_best(tmp_path: Path) -> None:
    sweep = eight(tmp_path)
    (before,) = population_of(sweep).generations
    after = following(sweep, [3.0, 9.0, 1.0, 4.0, 2.0, 5.0, 8.0, 7.0])  # losses: less is better
    assert {place for place, member in enumerate(after) if member.parent is not None} == {1, 6}
    for place, member in enumerate(after):
        if member.parent is None:
            assert member.point == before[place].point
        else:
            assert member.parent in (2, 4)
            parent = before[member.parent].point
            assert member.point != parent and member.point[RANK] == parent[RANK]


def test_more_is_better_where_the_metric_says_so(tmp_path: Path) -> None:
    sweep = eight(tmp_path, objective={"kind": "contrast", "prompts": 1}, quantile=0.125)
    after = following(sweep, [0.0, 0.1, 0.9, 0.2, -5.0, 0.3, 0.4, 0.5])
    assert [(place, member.parent) for place, member in enumerate(after) if member.parent is not None] == [
        (4, 2)
    ]


def test_the_next_generation_hangs_on_seed_and_values_alone(tmp_path: Path) -> None:
    values: list[float | None] = [3.0, 9.0, 1.0, 4.0, 2.0, 5.0, 8.0, 7.0]
    first, again = (following(eight(tmp_path), values) for _ in range(2))
    assert first == again != following(eight(tmp_path, seed=1), values)


def test_members_without_a_value_are_worst_and_all_of_them_are_replaced(tmp_path: Path) -> None:
    after = following(eight(tmp_path), [None, 9.0, None, None, 2.0, 5.0, None, None])
    parents = {place: member.parent for place, member in enumerate(after) if member.parent is not None}
    assert set(parents) == {0, 2, 3, 6, 7} and set(parents.values()) <= {4, 5}
    one_left = following(eight(tmp_path), [None, None, None, None, 2.0, None, None, None])
    assert {member.parent for place, member in enumerate(one_left) if place != 4} == {4}


def moves(folder: Path, **scheduler: Any) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """A parent's point and its successor's, of many."""
    found, first = [], eight(folder, **scheduler)
    for seed in range(20):
        other = population_of(first).model_copy(update={"seed": seed})
        sweep = first.model_copy(update={"scheduler": other})
        (before,) = population_of(sweep).generations
        after = following(sweep, [3.0, 9.0, 1.0, 4.0, 2.0, 5.0, 8.0, 7.0])
        found += [(before[one.parent].point, one.point) for one in after if one.parent is not None]
    return found


def test_values_are_moved_to_their_neighbours(tmp_path: Path) -> None:
    for parent, child in moves(tmp_path, resample=0, perturb=[0.5, 2.0]):
        ratio = child[RATE] / parent[RATE]
        assert ratio == pytest.approx(0.5, rel=1e-3) or ratio == pytest.approx(2, rel=1e-3)
        step = abs(child[OFFSET] - parent[OFFSET])
        assert step == pytest.approx(0.1) or (step == 0 and parent[OFFSET] in (0, 0.4))
        places = [AXES[GAMMA].index(point[GAMMA]) for point in (parent, child)]
        assert abs(places[0] - places[1]) == 1 or places[0] == places[1] != 1
        assert child[RANK] == parent[RANK]


def test_values_are_drawn_anew_as_often_as_told(tmp_path: Path) -> None:
    ratios = [child[RATE] / parent[RATE] for parent, child in moves(tmp_path, resample=1)]
    assert len({round(ratio, 6) for ratio in ratios}) > 30
    assert all(1e-5 <= child[RATE] <= 1e-2 for _, child in moves(tmp_path, resample=0, perturb=[1e-9, 1e9]))


def test_nobody_is_what_another_is_while_there_are_other_values(tmp_path: Path) -> None:
    axes = {RATE: [1e-5, 1e-4, 1e-3, 1e-2]}
    scheduler = {"kind": "population", "every": 50, "objective": LOSS, "quantile": 0.5, "resample": 1}
    sweep = load(tmp_path, axes=axes, training={"steps": 100, "holdout": 1}, scheduler=scheduler)
    after = following(with_remembered_generations(sweep, None), [1.0, 2.0, 3.0, 4.0])
    assert len({member.point[RATE] for member in after}) == 4


def test_a_value_that_nobody_has_is_found_beyond_the_neighbours(tmp_path: Path) -> None:
    """A past bug: after some attempts beside its parent, a member became what another was."""
    axes = {RATE: [1e-5, 1e-4, 1e-3, 1e-2]}
    scheduler = {"kind": "population", "every": 50, "objective": LOSS, "resample": 0}
    sweep = load(tmp_path, axes=axes, training={"steps": 100, "holdout": 1}, scheduler=scheduler)
    after = following(with_remembered_generations(sweep, None), [1.0, 2.0, 3.0, 4.0])
    assert after[3].parent == 0 and after[3].point[RATE] == 1e-2  # the other three are there


def test_where_a_list_is_too_short_two_become_one_trial(tmp_path: Path) -> None:
    scheduler = {"kind": "population", "every": 50, "objective": LOSS}
    axes = {RATE: [1e-3], RANK: [2, 4]}
    sweep = load(tmp_path, axes=axes, training={"steps": 100, "holdout": 1}, scheduler=scheduler)
    grown = evolved(with_remembered_generations(sweep, None), [Became(1.0), Became(2.0)])
    assert [member.point[RANK] for member in population_of(grown).generations[-1]] == [2, 2]
    assert len(expand(grown).trials) == 1


def test_generations_are_remembered_as_long_as_they_would_come_out_the_same(tmp_path: Path) -> None:
    objective = {"kind": "contrast", "prompts": 1}
    begun = eight(tmp_path, objective=objective)
    before = evolved(begun, [Became(float(value)) for value in range(8)])
    before = TypeAdapter(SweepSpec).validate_json(before.model_dump_json())

    def remembered(**changes: Any) -> int:
        sweep = SweepSpec.model_validate({**begun.model_dump(mode="json"), **changes})
        scheduler = population_of(sweep).model_copy(update=changes.get("scheduler", {}) | {"generations": ()})
        sweep = sweep.model_copy(update={"scheduler": scheduler})
        return len(population_of(with_remembered_generations(sweep, before)).generations)

    dumped = begun.model_dump(mode="json")
    assert remembered() == 2
    assert remembered(training={**dumped["training"], "steps": 200}) == 2
    assert remembered(training={**dumped["training"], "steps": 25}) == 1
    more = {"text": "a ship", "split": "dev", "tags": []}
    assert remembered(prompts=[*dumped["prompts"], more], seeds=[0, 1, 2]) == 2
    assert remembered(metrics=dumped["metrics"][:1], arms=dumped["arms"][1:]) == 2  # nobody looked at those
    assert remembered(prompts=[more, *dumped["prompts"]]) == 1
    assert remembered(training={**dumped["training"], "seed": 1}) == 1
    assert remembered(search={"kind": "random", "trials": 7}) == 1
