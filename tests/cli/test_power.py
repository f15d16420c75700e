"""What a design finds, as the command line says it; a pilot's variances from its tables."""

import re
from pathlib import Path

import numpy as np
import pytest

from harness.results.study import Study
from tests.cli.command import harness
from tests.reporting.report import example
from tests.sweeps.test_shipped_sweeps import SWEEPS


def test_without_a_pilot_it_speaks_of_standard_deviations(capsys: pytest.CaptureFixture[str]) -> None:
    assert harness("power", SWEEPS / "quickstart.yaml", "--effect", 0.8) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "in standard deviations of a prompt's mean difference" in said
    for prompts, difference in (("12 (this sweep)", 0.89), ("24", 0.60), ("48", 0.41), ("96", 0.29)):
        assert f" {prompts} {difference:.2f} " in said
    assert "found by this sweep in 71 % of studies; 15 prompts find it in 80 %" in said


def test_a_pilot_gives_variances_in_the_metrics_units(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    guidance = [{"name": "placebo_3", "negative": "wrong", "guidance": 7.0}]
    axes = {"training.seed": [0, 1, 2]}
    study = Study(example.build(tmp_path, example.config(axes=axes, arms=guidance), failed=()))
    assert study.pilot_NST.shape == (12, 2, 3)
    pairs = study.results.pairs(control="placebo", arm="wrong_lora", split="dev")
    differences = pairs[pairs["metric"] == "aesthetic"]["difference"].astype(float)
    assert np.nanmean(study.pilot_NST) == pytest.approx(differences.mean())
    components = study.pilot_components()
    assert components.training is not None and components.residual is not None
    margin = study.margin_to_propose()
    rungs = {c.control: c.mean_control for c in study.against(split="dev")}
    assert rungs["placebo_3"] is not None and rungs["placebo"] is not None
    assert margin == pytest.approx(abs(rungs["placebo_3"] - rungs["placebo"]) * 0.1 / 2)
    folder = tmp_path / "sweeps" / "example"
    assert harness("power", SWEEPS / "quickstart.yaml", "--pilot", folder) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "12 dev prompts × 2 noises × 3 trainings: variance between prompts" in said
    assert "of studies, in aesthetic:" in said and "analysis.margin: " in said
    found = re.search(r"12 \(this sweep\) ([\d.]+)", said)
    assert found is not None and 0.1 < float(found[1]) < 2


def test_check_says_what_the_test_prompts_find(capsys: pytest.CaptureFixture[str]) -> None:
    assert harness("check", SWEEPS / "quickstart.yaml") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "12 test prompts find a true difference of 0.89 standard deviations" in said
    assert "less is likely missed" in said
    assert harness("check", SWEEPS / "quickstart.yaml", "--set", "prompts=[{text: a, split: dev}]") == 0
    assert "no test prompts: whatever is found is exploratory" in " ".join(capsys.readouterr().out.split())
