"""A population's section: who went on from whom, and under which values."""

import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from harness.report.html import render
from harness.report.layout import layout
from harness.report.population import population
from harness.report.study import Study
from harness.results import Results
from harness.spec.evolution import Became, evolved, population_of, with_remembered_generations
from harness.spec.sweep import SweepSpec
from harness.workspace import Workspace
from tests.report import example
from tests.report.test_figures import words

RATE, GAMMA, RANK = "training.learning_rate", "training.min_snr_gamma", "adapter.rank"


def grown(values: Sequence[Sequence[float | None]]) -> SweepSpec:
    """Four members; `values` of each generation but the last."""
    plain = example.spec(axes={RATE: [1e-4, 1e-3], GAMMA: [None, 5.0]}, n_prompts=4)
    scheduler = {"kind": "population", "every": 50, "objective": {"kind": "contrast", "prompts": 1}}
    sweep = SweepSpec.model_validate({**plain.model_dump(mode="json"), "scheduler": scheduler})
    sweep = with_remembered_generations(sweep, None)
    for generation in values:
        became = [Became(value, None if value is not None else "the loss became nan") for value in generation]
        sweep = evolved(sweep, became)
    return sweep


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("population")


@pytest.fixture(scope="module")
def results(root: Path) -> Results:
    values: list[list[float | None]] = [[0.1, 0.2, None, 0.4], [0.15, 0.25, 0.45, 0.5], [0.3, 0.2, 0.5, 0.6]]
    return example.build(root, grown(values), failed=())


def test_it_is_said_who_went_on_from_whom(results: Results) -> None:
    found = population(Study(results))
    assert found is not None and (found.members, found.every) == (4, 50)
    assert found.compared == "aesthetic − placebo"
    first, second, third = found.exchanges
    assert (first.step, first.member, first.parent) == (50, 2, 3)
    assert (first.value, first.reason, first.parent_value) == ("—", "the loss became nan", "0.4")
    assert (second.step, second.member, second.parent, second.value) == (100, 0, 3, "0.15")
    assert (third.step, third.member, third.parent, third.value) == (150, 1, 3, "0.2")
    generations = population_of(SweepSpec.model_validate(_spec(results))).generations
    for exchange in found.exchanges:
        number = exchange.step // 50
        before = generations[number - 1][exchange.parent].point
        after = generations[number][exchange.member].point
        changed = [name for name in (RATE, GAMMA) if before[name] != after[name]]
        assert changed and len(exchange.changes.split(", ")) == len(changed)


def _spec(results: Results) -> dict[str, object]:
    names = SweepSpec.model_fields
    return {name: value for name, value in results.sweep.items() if name in names}


def test_the_figure_has_its_values_and_each_axis_that_changes(results: Results) -> None:
    found = population(Study(results))
    assert found is not None
    text = words(found.figure)
    assert {"training steps", "learning rate", "min snr gamma", "aesthetic − placebo"} <= set(text)
    assert {"the selected trial", "replaced"} <= set(text)


def test_the_page_has_it(results: Results, root: Path) -> None:
    page = render(results, Workspace(root))
    assert "Who went on from whom" in page
    assert len(re.findall(r'<span class="note">the loss became nan</span>', page)) == 1
    assert layout(Study(results)) is None  # its trials have left the grid that they began with


def test_without_anybody_replaced_there_is_none() -> None:
    assert population(Study(example.outline(example.spec()))) is None
    assert population(Study(example.outline(grown([])))) is None
