"""How the command line prints, and its verdicts and contrasts."""

import json
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness.config.loading.files import visible
from harness.errors import ConfigError
from harness.results.format import events, interval, metric_name, p_text, percent, signed

if TYPE_CHECKING:
    from harness.results import Results
    from harness.results.contrast import Contrast
    from harness.results.study import Study


class Letters(Console):
    """Prints every text letter for letter: no markup, no emoji codes, and control characters as escapes.

    On a terminal lines are wrapped between words. Elsewhere nothing is wrapped or cut, so that a path stands
    on one line of a log, and `awk` gets whole ids.
    """

    def __init__(self, *, stderr: bool = False) -> None:
        is_terminal = (sys.stderr if stderr else sys.stdout).isatty()
        super().__init__(
            stderr=stderr,
            markup=False,
            emoji=False,
            highlight=False,
            width=None if is_terminal else LOG_WIDTH,
            soft_wrap=not is_terminal,
        )

    def render_str(self, text: str, **options: Any) -> Text:
        """Of every text that is printed, in tables too."""
        return super().render_str(visible(text), **options)

    def item(self, text: str, *, mark: str = "· ") -> None:
        """An entry of a list: what wraps on a terminal stands under its first word."""
        written = Text(visible(text))
        room = max(self.width - cell_len(mark), 20)
        lines = written.wrap(self, room) if self.is_terminal else [written]
        for number, line in enumerate(lines):
            line.rstrip()
            self.print(Text(" " * cell_len(mark) if number else mark) + line, soft_wrap=True)


def styled(text: str, style: str) -> Text:
    """A text in a style, letter for letter."""
    return Text(visible(text), style=style)


LOG_WIDTH = 100_000
out = Letters()
err = Letters(stderr=True)


def trial_number(text: str) -> int | Literal["best"]:
    """A trial as it is named on the command line. Raises ConfigError unless it is a number or best."""
    if text == "best":
        return "best"
    if not text.isdecimal():
        raise ConfigError(f"trial {text!r} is not known; allowed: best, or a number (see harness check)")
    return int(text)


def print_verdict(
    results: "Results", folder: str, mirror: Sequence[str] = (), *, quiet: bool = False
) -> None:
    """The answer, as the report has it, the table of controls, and what to do next.

    `mirror`: commands and addresses for what a tracker has written. `quiet`: the headline alone.
    """
    from harness.results.headline import verdict
    from harness.results.study import Study

    study = Study(results)
    found = verdict(study)
    colour = {"better": "green", "worse": "red"}.get(found.tone, "yellow")
    out.print(styled(found.headline, f"bold {colour}"))
    if quiet:
        return
    for line in (*found.facts, *found.cautions, *events(results.sweep.get("events", []))):
        out.item(line)
    if found.contrasts:
        _print_table(found.contrasts, study, ["against"], lambda c: [c.control])
    for what, line in _next_steps(study, folder, mirror):
        out.print(f"{what:8}{line}", soft_wrap=True)  # whole, so that it can be copied


def verdict_as_json(results: "Results", folder: str, mirror: Sequence[str], failed: Mapping[str, str]) -> str:
    """The verdict as one JSON object; `failed` maps the name of a task to its reason."""
    from harness.results.headline import verdict
    from harness.results.study import Study

    study = Study(results)
    about = {"sweep": results.sweep["name"], "selected": study.selected, **asdict(verdict(study))}
    about["next"] = [{"what": what, "how": line} for what, line in _next_steps(study, folder, mirror)]
    return json.dumps({**about, "failed": dict(failed)}, ensure_ascii=False)


def _next_steps(study: "Study", folder: str, mirror: Sequence[str]) -> Iterator[tuple[str, str]]:
    """What there is to look at and to do, each with its path or command."""
    from harness.store.workspace import REPORT

    where = shlex.quote(folder)
    yield "page", f"{folder}/{REPORT}  (harness open {where})"
    yield "tables", f"r = harness.results.load({folder!r})"
    if study.selected is not None and study.sweep["training"] is not None:
        yield "LoRA", f"harness export {where} best"
    for line in mirror or [f"harness publish {where}"]:
        yield "W&B", line


def print_next_steps(lines: Sequence[str]) -> None:
    """Commands and addresses for what a tracker has written, whole, so that they can be copied."""
    for line in lines:
        out.print(f"{'W&B':8}{line}", soft_wrap=True)


def print_contrasts(results: "Results", trial_id: str, split: str) -> None:
    """One trial against each control on each metric."""
    from harness.results.study import Study

    study = Study(results)
    chosen = [c for c in study.contrasts.values() if (c.trial_id, c.split) == (trial_id, split)]
    _print_table(
        chosen, study, ["metric", "arm", "against"], lambda c: [metric_name(c.metric), c.arm, c.control]
    )


def _print_table(
    contrasts: Sequence["Contrast"],
    study: "Study",
    names: list[str],
    named: Callable[["Contrast"], list[str]],
) -> None:
    """A row per contrast, then each thing that its numbers do not say, once.

    On a narrow terminal the least needed columns are left out; no number is cut.
    """
    headings = [*names, "diff", "interval", "p", "wins", "pairs", "verdict"]
    rows = []
    for c in contrasts:
        decimals = study.decimals[c.metric]
        limits, wins = interval(c.low, c.high, decimals), percent(c.win_rate)
        numbers = [signed(c.difference, decimals), limits, p_text(c.p), wins, str(c.n_pairs), c.finding]
        rows.append([*named(c), *numbers])
    widths = [max(cell_len(visible(text)) for text in column) for column in zip(headings, *rows, strict=True)]
    left_out = set[str]()
    for heading in ("pairs", "wins", "p"):
        kept = [w + 2 for w, name in zip(widths, headings, strict=True) if name not in left_out]
        if sum(kept) - 2 > out.width:
            left_out.add(heading)
    table = Table(box=None, pad_edge=False)
    for heading in headings:
        if heading not in left_out:
            table.add_column(heading, no_wrap=True)
    for row in rows:
        table.add_row(*(text for text, name in zip(row, headings, strict=True) if name not in left_out))
    out.print(table)
    for note in dict.fromkeys(f"{c.control}: {c.note}" for c in contrasts if c.note):
        out.print(f"– {note}")
