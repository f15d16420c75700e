"""The calibration sweep finds what is planted in it, and nothing where nothing is."""

from pathlib import Path

import pytest

from harness.config.loading.load import load_plan
from harness.results import Results
from harness.results.contrast import Contrast
from harness.results.headline import verdict
from harness.results.study import Study
from tests.engine.executors.carrying import carry_out

SWEEP = Path(__file__).parents[2] / "sweeps" / "calibration.yaml"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Of one noise per prompt, half of the file's images."""
    return carry_out(load_plan(SWEEP, ["seeds=[1]"]), tmp_path_factory.mktemp("calibration"), "local").results


@pytest.fixture(scope="module")
def study(results: Results) -> Study:
    return Study(results)


def found(study: Study, arm: str, control: str = "baseline") -> Contrast:
    contrast = study.contrast(study.selected, arm=arm, control=control, split="test")
    assert contrast is not None and contrast.difference is not None
    return contrast


def test_twins_are_equal(study: Study) -> None:
    (twin,) = [c for c in study.between_controls if (c.arm, c.control) == ("twin", "baseline")]
    assert twin.difference == 0.0 and (twin.low, twin.high) == (0.0, 0.0) and twin.finding == "equivalent"


def test_an_adapter_that_does_nothing_changes_nothing(results: Results, study: Study) -> None:
    assert found(study, "null").finding == "equivalent"
    pairs = results.pairs(control="baseline", arm="null")
    assert len(pairs) == 24 * len(study.metrics)
    assert pairs["difference"].abs().max() <= 0.005


def test_a_higher_guidance_and_a_damage_are_found(study: Study) -> None:
    higher, damaged = found(study, "higher"), found(study, "damaged")
    assert higher.finding == "better" and higher.difference == pytest.approx(0.31, abs=0.15)
    assert damaged.finding == "worse" and damaged.difference == pytest.approx(-0.6, abs=0.3)


def test_guidance_alone_is_no_merit_of_an_adapter(results: Results, study: Study) -> None:
    assert study.arm == "loud" and found(study, "loud").finding == "better"
    assert found(study, "loud", "matched").finding == "equivalent"
    guidance = results.arms.set_index("arm")["guidance"]
    assert guidance["matched"] == pytest.approx(3.0, abs=0.1)
    answer = verdict(study)
    assert "every control" not in answer.headline and "baseline differs: guidance 2, not 3" in answer.headline
    assert answer.tone == "none"
    (units,) = [fact for fact in answer.facts if fact.startswith("In guidance units")]
    assert "against baseline is what guidance 2 to 3.0" in units
