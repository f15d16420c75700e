"""Damaged and matched controls, and guidance units, are told apart on the page, in W&B and in notebooks."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from harness.config.schema.sweep import WandbTracking
from harness.reporting.report.page import render
from harness.reporting.wandb_report import as_json, build
from harness.reporting.wandb_runs import all_runs
from harness.results import Results
from harness.results.notebook.display import as_html
from harness.results.study import Study
from harness.store.workspace import Workspace
from tests.reporting.report import example

ARMS = (
    {"name": "blurred", "post": {"degrade": "blur", "severity": 0.2}},
    {"name": "placebo_7", "negative": "wrong", "guidance": 7},
)
MATCH = {"arm": "wrong_lora", "by": "saturation", "trial": None, "missing": None}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kinds")


@pytest.fixture(scope="module")
def results(root: Path) -> Results:
    """Of a sweep whose sham were a control with a matched guidance, 6.3."""
    sweep = example.config(axes={}, arms=ARMS)
    made = example.build(root, sweep, gain=3.0, sham=2.0, failed=())
    matched = {"adapters": [], "match": MATCH, "guidance": 6.3}
    arms = [{**arm, **matched} if arm["name"] == "sham" else arm for arm in made.sweep["arms"]]
    return replace(made, sweep={**made.sweep, "arms": arms})


def rows(table: str) -> list[str]:
    """Of an HTML table, without its tags."""
    return [re.sub(r"<[^>]+>", " ", row) for row in re.findall(r"<tr.*?</tr>", table, re.DOTALL)]


def kinds(lines: list[str], units: str) -> None:
    """What must be said of each control, whatever shows it."""
    (matched,) = [line for line in lines if "guidance by saturation as of" in line]
    assert "sham" in matched and "6.3" in matched and "differs" not in matched
    (damaged,) = [line for line in lines if "known damage, blur 0.2" in line]
    assert "blurred − baseline" in damaged and "found" in damaged
    (head,) = [line for line in lines if "finding" in line]
    assert "as guidance" in head
    (against,) = [line for line in lines if re.search(r"placebo(?!_)", line) and units in line]
    assert "undecided" in against or "better" in against


def units_of(results: Results) -> str:
    study = Study(results)
    (c,) = [c for c in study.against(split=study.split) if c.control == "placebo"]
    units = study.as_guidance(c)
    assert units.startswith("5 → "), "a ladder of three rungs reaches the effect"
    return units


def test_the_page(root: Path, results: Results) -> None:
    page = render(results, Workspace(root))
    table = page.partition('<table class="controls">')[2].partition("</table>")[0]
    kinds(rows(table), units_of(results))
    metrics = page.partition('id="metrics"')[2].partition("</thead>")[0]
    assert "known damage, blur 0.2" in metrics and "guidance by saturation as of wrong_lora: 6.3" in metrics


def test_a_notebook(results: Results) -> None:
    page = as_html(results)
    kinds(rows(page.partition("<table>")[2].partition("</table>")[0]), units_of(results))
    assert page.count("<tr>") <= 25


def test_a_wandb_report(root: Path, results: Results) -> None:
    pytest.importorskip("wandb_workspaces")
    runs = all_runs(results, Workspace(root), images_per_arm=1)
    said = as_json(build(results, runs, WandbTracking(project="p")))
    text = said.replace("\\\\", "").replace("\\n", "\n")
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    kinds(lines, units_of(results))
