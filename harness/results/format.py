"""Numbers and names as people read them. A missing number is an em dash, never 0."""

import math
import re
from typing import Any

from harness.config.loading.files import one_line, visible

MISSING = "—"
MOST_LETTERS = 20_000  # as the longest text of a sweep
# What would act in Markdown, or in HTML and formulas within it; not every bracket or sign.
MARKUP = re.compile(r"[\\`*|$~&]|<(?=[A-Za-z/!?])|(?<![^\W_])_|_(?![^\W_])|(?<=\])\(|!(?=\[)")


def markdown(text: object) -> str:
    """A user's text within a line of Markdown, or a table's cell, as the letters that it is."""
    return MARKUP.sub(r"\\\g<0>", visible(str(text)).replace("\n", " "))


def code(text: object) -> str:
    """A user's text as a span of code in Markdown."""
    shown = one_line(text, MOST_LETTERS)
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", shown)), default=0))
    space = " " if shown.startswith("`") or shown.endswith("`") or not shown else ""
    return f"{fence}{space}{shown}{space}{fence}"


def figure_text(text: object) -> str:
    """A user's text in a figure: short, on one line, and none of it a formula of matplotlib."""
    return one_line(text, 60).replace("$", r"\$")


def decimals_for(width: float) -> int:
    """Decimals that an interval of this width deserves: enough for two or three digits of the width."""
    if not width or not math.isfinite(width):
        return 3
    return min(max(math.ceil(1.3 - math.log10(width)), 0), 5)


def plain(value: float | None, decimals: int) -> str:
    """1.23 with a true minus sign."""
    if value is None:
        return MISSING
    text = f"{value:.{decimals}f}"
    if float(text) == 0:
        text = text.lstrip("-")
    return text.replace("-", "−")


def signed(value: float | None, decimals: int) -> str:
    """+1.23, −1.23, 0.00."""
    text = plain(value, decimals)
    return f"+{text}" if value is not None and value > 0 and float(f"{value:.{decimals}f}") else text


def tone(value: float | None, decimals: int, higher_is_better: bool | None) -> str:
    """`up` for a difference to the better, `down` to the worse; empty for one that is shown as zero."""
    if value is None or higher_is_better is None or float(f"{value:.{decimals}f}") == 0:
        return ""
    return "up" if (value > 0) == higher_is_better else "down"


def interval(low: float | None, high: float | None, decimals: int) -> str:
    """[+0.05, +0.37]."""
    if low is None or high is None:
        return MISSING
    return f"[{signed(low, decimals)}, {signed(high, decimals)}]"


def p_text(p: float | None) -> str:
    """0.012, or < 0.001."""
    if p is None:
        return MISSING
    if p < 0.001:
        return "< 0.001"
    return f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def p_clause(p: float | None) -> str:
    """`p = 0.012` or `p < 0.001`."""
    text = p_text(p)
    return f"p {text}" if text.startswith("<") else f"p = {text}"


def percent(share: float | None) -> str:
    """71 %, with a thin no-break space."""
    return MISSING if share is None else f"{100 * share:.0f}\u202f%"


def count(n: int, noun: str) -> str:
    """1 prompt, 2 prompts."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def listed(words: list[str], conjunction: str = "and") -> str:
    """A, b and c."""
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} {conjunction} {words[-1]}"


def metric_name(kind: str) -> str:
    """clip_score → CLIP score."""
    return kind.replace("_", " ").replace("clip score", "CLIP score")


def axis_name(axis: str) -> str:
    """adapter.learning_rate → learning rate."""
    return axis.rpartition(".")[2].replace("_", " ")


def axis_value(axis: str, value: object) -> str:
    """A value of an axis with its unit or name: `rank 8`, `200 steps`, `keywords`."""
    shown = MISSING if value is None else f"{value:g}" if isinstance(value, float) else one_line(value)
    if axis == "training.steps":
        return f"{shown} steps"
    return f"{axis_name(axis)} {shown}" if "." in axis else shown


def duration(seconds: float | None) -> str:
    """2 d 3 h, 3 h 12 min, 4 min 14 s, 12 s: the two largest units."""
    if seconds is None:
        return MISSING
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


EVENTS = {
    "worker lost": "a worker was killed, ended by itself or could not be reached",
    "node lost": "a node of the cluster was lost with its workers",
    "tried again": "a task was tried again, from its last checkpoint",
    "made again": "a part of the store was found damaged and made again",
    "stopped": "the sweep was stopped by a signal",
    "driver lost": "the driver was killed or lost its cluster, and was started again",
}


def events(rows: list[dict[str, Any]]) -> list[str]:
    """The incidents of a sweep (`events` of `sweep.json`): a line per kind, by the driver's clock."""
    return [
        f"{EVENTS[row['what']]}: {count(row['count'], 'time')}, "
        f"last at {row['last'][:16].replace('T', ' ')} UTC"
        for row in rows
    ]
