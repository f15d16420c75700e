"""What was looked at first on test prompts is confirmatory; all else on them is exploratory."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.engine.collect import described
from harness.results import Results
from harness.results.headline import verdict
from harness.results.ledger import LEDGER, record
from harness.results.study import Study
from harness.store.workspace import Workspace
from tests.reporting.report import example


@pytest.fixture
def store(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "store")


def study_with(results: Results, store: Workspace | None = None, **analysis: Any) -> Study:
    """The results as another analysis of them would be, noted in the store where one is given."""
    sweep = {**results.sweep, "analysis": {**results.sweep["analysis"], **analysis}}
    study = Study(replace(results, sweep=sweep))
    if store is None:
        return study
    return Study(replace(results, sweep={**sweep, "looks": record(store, study)}))


def test_a_second_metric_control_or_margin_is_exploratory_and_the_first_stays(
    results: Results, store: Workspace
) -> None:
    first = study_with(results, store)
    assert first.confirmatory and len(first.looks) == 1
    headline = verdict(first).headline
    assert first.looks[0]["headline"] == headline and not headline.startswith("Exploratory")
    changes: list[dict[str, Any]] = [{"primary": "clip_score"}, {"control": "sham"}, {"margin": 0.5}]
    for number, change in enumerate(changes, start=2):
        later = study_with(results, store, **change)
        assert [look["sweep"] for look in later.looks] == ["example"] * number
        found = verdict(later)
        assert found.headline.startswith(f"Exploratory (look {number} at these test prompts): ")
        main = later.contrast(later.selected, control=later.control, split="test")
        assert main is not None and main.p is not None
        assert f"“{headline}”" in found.cautions[0] and f"over {number} looks p is" in found.cautions[0]
    again = study_with(results, store)
    assert again.confirmatory and again.looks == first.looks
    assert len(list((store.root / "sweeps" / LEDGER).glob("*.json"))) == 4


def test_another_selected_trial_is_another_look(results: Results, store: Workspace) -> None:
    """An extended sweep whose new trial wins has been confirmed on prompts that another was confirmed on."""
    first = study_with(results, store)
    other = next(trial for trial in results.trials["trial_id"] if trial != first.selected)
    trials = results.trials.assign(selected=results.trials["trial_id"] == other)
    here = results.summary["trial_id"] == first.selected
    summary = results.summary.assign(trial_id=results.summary["trial_id"].mask(here, other))
    assert not study_with(replace(results, trials=trials, summary=summary), store).confirmatory


def test_fresh_test_prompts_are_a_first_look_whatever_the_store_has_seen(
    results: Results, store: Workspace
) -> None:
    study_with(results, store)
    fresh = [{**p, "text": f"{p['text']} in the rain"} for p in results.sweep["prompts"]]
    assert study_with(replace(results, sweep={**results.sweep, "prompts": fresh}), store).confirmatory
    half = [*fresh[:18], *results.sweep["prompts"][18:]]
    assert not study_with(replace(results, sweep={**results.sweep, "prompts": half}), store).confirmatory


def test_nothing_is_noted_without_test_images_nor_lost_to_a_damaged_file(
    results: Results, store: Workspace
) -> None:
    sweep = example.config(test_share=0.0)
    about = described(sweep, {}, [], seconds=0.0)
    dev = results.summary[results.summary["split"] == "dev"]
    assert record(store, Study(replace(results, summary=dev, sweep=about))) == []
    assert not (store.root / "sweeps" / LEDGER).exists()
    study_with(results, store)
    (file,) = (store.root / "sweeps" / LEDGER).glob("*.json")
    file.write_text("{")
    assert study_with(results, store).confirmatory
    assert store.sweep_names() == []


def test_a_look_that_cannot_be_read_counts_as_one(results: Results, store: Workspace) -> None:
    assert study_with(results, store).confirmatory
    (file,) = (store.root / "sweeps" / LEDGER).glob("*.json")
    other = file.rename(
        file.with_name(f"{'0' * len(file.stem)}.json")
    )  # of another analysis, as far as one sees
    other.write_text(other.read_text()[:-20])
    study = study_with(results, store)
    assert not study.confirmatory
    said = " ".join((*verdict(study).facts, *verdict(study).cautions))
    assert f"{LEDGER}/{other.name} among the sweeps cannot be read" in said and "exploratory" in said
    assert other.exists(), "it is not deleted"
