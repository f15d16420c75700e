"""The page in a real browser, from a file."""

from pathlib import Path

import pytest

from harness.reporting.report import write_report
from harness.results import Results
from harness.store.workspace import Workspace
from tests.reporting.report.browser import CHROMIUM, Page

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian: apt-get install chromium)")


@pytest.fixture(scope="module")
def html(results: Results, workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("page") / "report.html"
    write_report(results, Workspace(workspace), target)
    return target


@pytest.mark.parametrize("width", [1280, 390])
def test_it_opens_from_a_file_and_fits(browser: Page, html: Path, width: int) -> None:
    browser.open(html, width=width)
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert browser.evaluate("document.querySelector('.headline').getBoundingClientRect().top") < 900
    assert not browser.complaints
    assert [url for url in browser.requests if not url.startswith("data:")] == [html.as_uri()]


def test_every_image_is_drawn(browser: Page, html: Path) -> None:
    browser.open(html, width=1280)
    broken = "[...document.images].filter(i => !i.complete || !i.naturalWidth).length"
    assert browser.evaluate("document.images.length") > 40
    assert (
        browser.evaluate(f"Promise.all([...document.images].map(i => i.decode())).then(() => {broken})") == 0
    )


def test_arms_of_a_pair_stand_side_by_side_on_a_telephone(browser: Page, html: Path) -> None:
    browser.open(html, width=390)
    tops = "[...document.querySelector('.shots').children].map(s => s.getBoundingClientRect().top)"
    assert browser.evaluate(f"new Set({tops}).size") == 1


def test_text_of_figures_stays_inside_them(browser: Page, html: Path) -> None:
    browser.open(html, width=1280)
    outside = """[...document.querySelectorAll('svg')].flatMap(svg => {
        const box = svg.getBoundingClientRect();
        return [...svg.querySelectorAll('text')].filter(t => {
            const r = t.getBoundingClientRect();
            return r.left < box.left - 2 || r.right > box.right + 2;
        }).map(t => t.textContent)})"""
    assert browser.evaluate(outside) == []
