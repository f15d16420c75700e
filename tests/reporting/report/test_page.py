"""The page as a file: whole, self-contained, safe against what stands in the tables, the same each time."""

import platform
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from harness.errors import WorkspaceError
from harness.reporting.report import write_report
from harness.reporting.report.page import render
from harness.results import Results
from harness.results.study import Study
from harness.store.artifact import versions
from harness.store.workspace import Workspace
from tests.reporting.report import example

VOID = {"meta", "link", "img", "br", "input"}


class Page(HTMLParser):
    """Collects addresses, headings and unclosed elements."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.without_alt = 0
        self.headings: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.addresses += [value for key in ("src", "href", "xlink:href") if (value := given.get(key))]
        self.without_alt += tag == "img" and not given.get("alt")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value for key in ("src", "href", "xlink:href") if (value := dict(attrs).get(key))]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("h1", "h2", "h3"):
            self.headings.append((self.open[-1], data))


@pytest.fixture(scope="module")
def page(results: Results, workspace: Path) -> str:
    return render(results, Workspace(workspace))


def test_everything_is_inside(page: str) -> None:
    found = Page(page)
    assert found.addresses and not found.open
    assert all(address.startswith(("data:", "#")) for address in found.addresses)
    assert not re.search(r"@import|url\((?!#)|@font-face|\bfetch\(|XMLHttpRequest|\bimport\(", page)
    assert found.without_alt == 0
    assert len(page) < 15_000_000


def test_the_verdict_comes_first_and_the_rest_in_order(page: str, results: Results) -> None:
    headings = Page(page).headings
    assert headings[0] == ("h1", results.sweep["question"])
    assert [text for tag, text in headings if tag == "h2"] == [
        "Verdict",
        "Images",
        "Grid",
        "All trials",
        "Across the sweep",
        "All metrics",
        "Blind votes",
        "Dose and response",
        "Losses",
        "Failed or missing",
        "How it was measured",
        "Provenance",
        "Image",  # of the overlay
        "Which image is better?",  # of the blind votes
    ]


def test_controls_are_shown_against_each_other(page: str, study: Study) -> None:
    table = page.partition("The controls against each other")[2].partition("</table>")[0]
    rows = re.findall(r'<th scope="row">(\w+)</th><td>(\w+)</td>', table)
    assert rows == [(c.arm, c.control) for c in study.between_controls] and len(rows) == 3
    assert "<td>control: sham</td>" in page


def test_failures_and_provenance_are_there(page: str, workspace: Path) -> None:
    assert "loss became NaN at step 61" in page
    assert "5f1d" * 16 in page and f"torch {versions()['torch']}" in page
    assert f"on {platform.node()}, after 4 min 14 s" in page
    assert f"{workspace}/sweeps/example" in page and "--workspace " in page
    assert "started from identical latents in every arm" in page


def test_what_stands_in_the_tables_is_text(results: Results, workspace: Path) -> None:
    evil = "</p><script>alert(1)</script>&"
    spoilt = replace(
        results,
        images=results.images.assign(prompt=evil),
        trials=results.trials.assign(reason=evil),
        sweep={**results.sweep, "question": evil},
    )
    text = render(spoilt, Workspace(workspace))
    assert text.count("<script") == 2 and "&lt;script&gt;alert(1)" in text
    assert text.count("</script>") == 2 and "\\u003cscript" in text
    assert not Page(text).open


def test_the_same_results_give_the_same_page(page: str, results: Results, workspace: Path) -> None:
    assert render(results, Workspace(workspace)) == page


def test_a_page_that_cannot_be_made_leaves_the_old_one(
    results: Results, workspace: Path, tmp_path: Path
) -> None:
    target = tmp_path / "report.html"
    target.write_text("the old page")
    with pytest.raises(KeyError):
        write_report(replace(results, sweep={}), Workspace(workspace), target)
    assert target.read_text() == "the old page"
    write_report(results, Workspace(workspace), target)
    assert target.read_text().endswith("</html>\n") and list(tmp_path.iterdir()) == [target]


def test_a_target_that_cannot_be_written_is_the_users_error(
    results: Results, workspace: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkspaceError, match="cannot be written"):
        write_report(results, Workspace(workspace), tmp_path / "file" / "report.html")


def test_a_sweep_in_which_everything_failed_has_a_page(tmp_path: Path) -> None:
    nothing = example.build(tmp_path, example.config(n_prompts=4, seeds=(0,)), failed=tuple(range(8)))
    text = render(nothing, Workspace(tmp_path))
    assert "No verdict: none of 8 trials was completed." in text
    assert "There is no pair of images to show." in text
    assert text.count("loss became NaN") >= 8
    assert not Page(text).open


def test_folders_are_written_as_one_would_type_them(
    results: Results, workspace: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = {"kind": "folder", "path": str(tmp_path / "images" / "fox")}
    page = render(replace(results, sweep={**results.sweep, "recipe": recipe}), Workspace(workspace))
    assert "images/fox" in page
    assert str(tmp_path) not in page
