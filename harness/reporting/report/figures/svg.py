"""Matplotlib figures as SVG that belongs to the page: its fonts, its ink in light and dark, its own ids."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib
from markupsafe import Markup, escape
from matplotlib.figure import Figure

# Stand-ins that are replaced by the page's own colours, so that a figure follows light and dark mode.
INK, MUTED, RULE = "#010203", "#040506", "#070809"
PAGE_COLOURS = {INK: "var(--ink)", MUTED: "var(--muted)", RULE: "var(--rule)", "#0072b2": "var(--blue)"}

# Okabe and Ito (2008): told apart with any common colour vision deficiency.
BLUE, ORANGE, GREEN, PURPLE, SKY, YELLOW = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00"
MARKERS = "osD^vP"
PALETTE = (BLUE, ORANGE, GREEN, PURPLE, SKY, YELLOW)

STYLE: dict[Any, Any] = {
    "text.parse_math": False,  # a dollar of a prompt begins no formula
    "svg.fonttype": "none",  # text stays text: selectable, and drawn in the page's font
    "svg.hashsalt": "harness",  # the same figure has the same ids
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # wide, so that no narrower page font can overrun its place
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": RULE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "hatch.linewidth": 0.7,
    "legend.frameon": False,
}


def look(place: int) -> dict[str, str]:
    """Colour and marker of a line; the first 36 differ from each other."""
    return {
        "color": PALETTE[place % len(PALETTE)],
        "marker": MARKERS[(place + place // len(PALETTE)) % len(MARKERS)],
    }


@contextmanager
def page_style() -> Iterator[None]:
    """Matplotlib in the page's style, whatever the user's matplotlibrc says."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield


def inline(figure: Figure, *, name: str, alt: str) -> Markup:
    """The figure as an `<svg>` element. `name` keeps its ids apart from other figures' on the page."""
    buffer = io.StringIO()
    figure.savefig(
        buffer, format="svg", transparent=True, bbox_inches="tight", pad_inches=0.05, metadata={"Date": None}
    )
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    for stand_in, colour in PAGE_COLOURS.items():
        text = text.replace(stand_in, colour)
    text = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', text)
    text = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", text)
    text = re.sub(r'xlink:href="#([^"]+)"', rf'href="#{name}-\1"', text)
    width = re.search(r'viewBox="\S+ \S+ (\S+) ', text)
    assert width is not None, "matplotlib always writes a viewBox"
    head = f'<svg role="img" aria-label="{escape(alt)}" style="width:{float(width[1]) * 4 / 3:.0f}px" '
    text = re.sub(r'<svg (?:[^>]*?)(viewBox="[^"]+")[^>]*>', head + r"\1>", text, count=1, flags=re.DOTALL)
    return Markup(text)
