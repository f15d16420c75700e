"""The page for everyone: names, contrast, focus and order in real Chromium; narrow, dark, printed."""

from itertools import pairwise
from pathlib import Path

import pytest

from harness.reporting.report import write_report
from harness.results import Results
from harness.store.workspace import Workspace
from tests.reporting.report.browser import CHROMIUM, Page

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian: apt-get install chromium)")

# WCAG 2.2, 1.4.3: 4.5 to 1, or 3 to 1 for large text. Text on images or gradients is not judged.
CONTRAST = """(() => {
    const parse = text => text.match(/[\\d.]+/g).map(Number);
    const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
        .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
        .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
    const ground = (node) => {
        for (; node; node = node.parentElement) {
            const colour = parse(getComputedStyle(node).backgroundColor);
            if (colour.length < 4 || colour[3] === 1) return colour;
        }
        return parse(getComputedStyle(document.documentElement).getPropertyValue('background-color'));
    };
    const bad = new Set();
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        const node = walker.currentNode.parentElement;
        const words = walker.currentNode.data.trim();
        if (!words || !node.checkVisibility() || node.closest('svg, script, style')) continue;
        const style = getComputedStyle(node);
        const [a, b] = [light(parse(style.color)), light(ground(node))].sort((x, y) => y - x);
        const size = parseFloat(style.fontSize);
        const large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
        if ((a + 0.05) / (b + 0.05) < (large ? 3 : 4.5) - 0.01)
            bad.add(node.tagName + '.' + node.className + ': ' + words.slice(0, 30));
    }
    return [...bad]})()"""
IDS = """(ids => ids.filter((id, i) => ids.indexOf(id) !== i))(
    [...document.querySelectorAll('[id]')].map(e => e.id))"""
REFERENCES = """[...document.querySelectorAll('[aria-labelledby], [for]')].flatMap(e =>
    (e.getAttribute('aria-labelledby') ?? e.getAttribute('for')).split(' '))
    .filter(id => !document.getElementById(id))"""
LEVELS = (
    "[...document.querySelectorAll('main h1, main h2, main h3, header h1')].map(h => Number(h.tagName[1]))"
)
HEADS = "[...document.querySelectorAll('table')].filter(t => t.rows.length && !t.querySelector('th')).length"
SCROLLS = """[...document.querySelectorAll('body *')].filter(e => e.checkVisibility() &&
    /auto|scroll/.test(getComputedStyle(e).overflowX + getComputedStyle(e).overflowY) &&
    (e.scrollWidth > e.clientWidth + 1 || e.scrollHeight > e.clientHeight + 1) &&
    e.tabIndex < 0 && !e.querySelector('a, button, input, select, [tabindex]'))
    .map(e => e.tagName + '.' + e.className)"""
SMALL = """[...document.querySelectorAll('button, select, input')].filter(e => e.checkVisibility())
    .filter(e => { const r = e.getBoundingClientRect(); return r.width < 20 || r.height < 16; })
    .map(e => e.outerHTML.slice(0, 60))"""


@pytest.fixture(scope="module")
def html(results: Results, workspace: Path) -> Path:
    target = workspace / "sweeps" / "example" / "accessible.html"
    write_report(results, Workspace(workspace), target)
    return target


def nameless(page: Page) -> list[str]:
    """What can be focused or is an image, and has no name for who does not see it."""
    found = []
    for node in page.call("Accessibility.getFullAXTree")["nodes"]:
        role = node.get("role", {}).get("value")
        focusable = any(p["name"] == "focusable" and p["value"]["value"] for p in node.get("properties", []))
        wanted = role in ("button", "link", "image", "slider", "checkbox", "combobox", "searchbox", "region")
        name = node.get("name", {}).get("value", "").strip()
        if not node.get("ignored") and (wanted or focusable) and not name and role != "RootWebArea":
            found.append(f"{role} {node.get('backendDOMNodeId')}")
    return found


def faults(page: Page) -> dict[str, object]:
    levels = page.evaluate(LEVELS)
    found = {
        "contrast": page.evaluate(CONTRAST),
        "double ids": page.evaluate(IDS),
        "references": page.evaluate(REFERENCES),
        "skipped heading": any(b > a + 1 for a, b in pairwise(levels)),
        "tables without heads": page.evaluate(HEADS),
        "scroll areas without keyboard": page.evaluate(SCROLLS),
        "too small to hit": page.evaluate(SMALL),
        "without a name": nameless(page),
    }
    return {what: fault for what, fault in found.items() if fault}


@pytest.mark.parametrize("dark", [False, True])
def test_nothing_is_wrong_for_who_sees_little_or_uses_a_keyboard(
    browser: Page, html: Path, dark: bool
) -> None:
    browser.open(html, width=1280, dark=dark)
    browser.evaluate("for (const d of document.querySelectorAll('details')) d.open = true")
    assert faults(browser) == {}
    browser.evaluate("document.querySelectorAll('.pair .shot-button')[3].click()")
    browser.press("c")
    browser.press("2")
    assert faults(browser) == {}
    assert not browser.complaints


def test_a_narrow_screen_has_all_of_it(browser: Page, html: Path) -> None:
    browser.open(html, width=375, height=800)
    assert browser.evaluate("document.documentElement.scrollWidth") <= 375
    assert browser.evaluate("document.querySelector('.narrow svg').checkVisibility()")
    assert not browser.evaluate("document.querySelector('.roomy svg').checkVisibility()")
    width = "document.querySelector('table.controls').scrollWidth"
    assert browser.evaluate(width) <= 375
    browser.evaluate("document.querySelector('.pair .shot-button').click()")
    assert (
        browser.evaluate("document.querySelector('#lightbox-stage img').getBoundingClientRect().right") <= 375
    )


def test_print_keeps_every_column(browser: Page, html: Path) -> None:
    browser.open(html, width=718)  # A4 less its margins, at 96 dots per inch
    browser.evaluate("dispatchEvent(new Event('beforeprint'))")
    browser.call("Emulation.setEmulatedMedia", media="print")
    try:
        outside = """[...document.querySelectorAll('table:not(.xyz), figure, pre, .pair')]
            .filter(e => e.checkVisibility() && e.getBoundingClientRect().right > 719)
            .map(e => e.outerHTML.slice(0, 80))"""
        assert browser.evaluate(outside) == []
        heads = browser.evaluate("document.querySelector('#metrics table').tHead.innerText").split()
        assert heads == ["metric", "baseline", "placebo", "sham"]
        folded = (
            "[...document.querySelectorAll('main details:not(.unprinted) > *:not(summary)')]"
            ".filter(e => !e.checkVisibility())"
        )
        assert browser.evaluate(f"{folded}.filter(e => !e.matches('.scripted')).length") == 0
        assert browser.evaluate("getComputedStyle(document.querySelector('h2')).breakAfter") == "avoid"
    finally:
        browser.call("Emulation.setEmulatedMedia", media="")
