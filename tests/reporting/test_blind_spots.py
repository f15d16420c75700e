"""What the judges do not see stands on the page and in the card."""

import json
from pathlib import Path

import pytest

from harness.metrics import weights
from harness.reporting.blind_spots import blind_spots
from harness.reporting.report.page import render
from harness.store.workspace import Workspace
from tests.reporting.report import example


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The weights of the example's judges, of which one damage is not seen."""
    path = tmp_path / "known_directions.json"
    damages = {"wash_out": {"unseen": "it rises"}, "blur": {"unseen": None}}
    path.write_text(json.dumps({"ab12" * 4: {"metric": "any", "damages": damages}}))
    monkeypatch.setattr(weights, "KNOWN_DIRECTIONS", path)


def test_the_page_says_what_a_judge_does_not_see(tmp_path: Path, measured: None) -> None:
    results = example.build(tmp_path / "w", example.config(axes={}))
    expected = [
        f"{metric} does not see all damage of generated images: wash out (it rises)."
        for metric in ("CLIP score", "aesthetic")
    ]
    assert blind_spots(results) == expected
    page = render(results, Workspace(tmp_path / "w"))
    assert "What the judges do not see" in page and expected[1] in page


def test_of_a_primary_that_was_never_measured_this_is_said(tmp_path: Path) -> None:
    results = example.build(tmp_path / "w", example.config(axes={}))
    assert blind_spots(results) == ["It was not measured which damage aesthetic does not see."]
