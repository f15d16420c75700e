from pathlib import Path
from typing import Any

import pytest

from harness.config.loading.check_axes import axis_names
from harness.config.plan.plan import expand
from harness.errors import ConfigError
from tests.config.example import load

WORDS = {"kind": "keywords", "keywords": ["ugly"]}
PLAIN = {"kind": "plain", "prompts": ["a cat"]}


def message(folder: Path, axes: dict[str, Any], **changes: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        load(folder, axes=axes, **changes)
    return str(caught.value).replace(f"{folder}/x.yaml: ", "")


def test_names_are_sections_with_kinds_and_fields_that_bear_identity() -> None:
    names = axis_names()
    assert {"recipe", "model", "adapter", "adapter.rank", "training.steps", "recipe.severity"} <= set(names)
    assert not {"training", "recipe.path", "recipe.name", "model.digest", "model.variant"} & set(names)


@pytest.mark.parametrize(
    ("axes", "line"),
    [
        ({"adapter.rank": [4, 8, 0]}, "axes.adapter.rank[2]: 0 is not allowed: must be ≥ 1"),
        ({"adapter.rank": [8, 8.0]}, "axes.adapter.rank: 8 is given twice"),
        ({"recipe.guidance": [[8], [-1]]}, "axes.recipe.guidance[1][0]: -1 is not allowed: must be ≥ 0"),
        (
            {"recipe.severity": [[0.5, 1], [0.2, 1]]},
            "axes.recipe.severity: keywords has no such key; "
            "allowed: emphasis, guidance, keywords, kind, name, refiner_start, seed, steps",
        ),
        (
            {"recipe": ["keywords"]},
            'axes.recipe[0]: "keywords" is not allowed: must be a mapping, as {key: value}',
        ),
        (
            {"recipe": [WORDS, {"kind": "word"}]},
            "axes.recipe[1].kind: word is not known; did you mean keywords? "
            "allowed: degrade, folder, keywords, plain",
        ),
        (
            {"recipe": [{**WORDS, "sed": 1}]},
            "axes.recipe[0].sed is not known; did you mean axes.recipe[0].seed? "
            "allowed: emphasis, guidance, keywords, kind, name, refiner_start, seed, steps",
        ),
        (
            {"recipe": [WORDS, {**WORDS, "seed": 1}]},
            'axes.recipe: two values are called "keywords"; give each a name of its own (name: ...)',
        ),
        (
            {"recipe": [{**WORDS, "seed": 1}], "recipe.seed": [1, 2]},
            "axes.recipe[0].seed is overwritten by axes.recipe.seed",
        ),
        (
            {"recipe": [{**WORDS, "name": "a"}, {**WORDS, "name": "b"}]},
            'axes: {"recipe": "a"} and {"recipe": "b"} are the same trial',
        ),
    ],
)
def test_fault_names_axis_and_value(tmp_path: Path, axes: dict[str, Any], line: str) -> None:
    recipe = {"recipe": None} if "recipe" in axes else {}
    assert message(tmp_path, axes, **recipe) == line


def test_unknown_axis_offers_the_nearest(tmp_path: Path) -> None:
    line = message(tmp_path, {"adapter.rnak": [4]})
    assert line.startswith("axes.adapter.rnak is not known; did you mean axes.adapter.rank, ")
    for name in ("training", "recipe.path", "compute.batch_size", "arms"):
        assert message(tmp_path, {name: [1]}).startswith(f"axes.{name} is not known")


def test_a_value_is_told_once_however_many_trials_it_spoils(tmp_path: Path) -> None:
    lines = message(tmp_path, {"adapter.rank": [0, 4], "training.steps": [1, 2, -3]}).splitlines()
    assert lines == [
        "axes.adapter.rank[0]: 0 is not allowed: must be ≥ 1",
        "axes.training.steps[2]: -3 is not allowed: must be ≥ 1",
    ]


def test_fault_between_two_fields_names_the_axis(tmp_path: Path) -> None:
    degrade = {"kind": "degrade", "prompts": ["a cat"], "degradations": ["blur"]}
    line = message(tmp_path, {"recipe.severity": [[0.5, 1], [0.9, 0.1]]}, recipe=degrade)
    assert line == "axes.recipe.severity[1]: recipe: severity must be [lowest, highest]"


def test_values_become_what_the_specification_holds(tmp_path: Path) -> None:
    sweep = load(tmp_path, axes={"adapter.rank": [8.0, "4"], "training.learning_rate": [1]})
    assert sweep.axes == {"adapter.rank": (8, 4), "training.learning_rate": (1.0,)}
    assert [type(value) for value in sweep.axes["adapter.rank"]] == [int, int]


def test_whole_section_and_a_name_inside_it(tmp_path: Path) -> None:
    sweep = load(tmp_path, recipe=None, axes={"recipe": [WORDS, PLAIN], "recipe.seed": [1, 2]})
    found = [t.config.trained.recipe.model_dump(include={"kind", "seed"}) for t in expand(sweep).trials]
    assert found == [{"kind": kind, "seed": seed} for kind in ("keywords", "plain") for seed in (1, 2)]


def test_section_beside_the_axis_that_replaces_it(tmp_path: Path) -> None:
    line = message(tmp_path, {"recipe": [WORDS, PLAIN]})
    assert line == "recipe is used by no trial, since axes.recipe replaces it; remove it or add it there"
    lent = load(tmp_path, recipe=WORDS, axes={"recipe": [WORDS, PLAIN]}).recipe
    assert lent is not None and lent.kind == "keywords"
