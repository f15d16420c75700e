"""The live display of a running sweep: what is under way, how much of it is done, the time left."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import cast

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.text import Text

from harness.cli.console import styled
from harness.engine.stages.context import Count, Event, Kind
from harness.results.format import duration

LABELS: dict[Kind, str] = {
    "dataset_images": "training images",
    "training_steps": "training steps",
    "images": "images",
    "trials": "trials",
}
ACTIVITIES: dict[Kind, str] = {
    "dataset_images": "generating training images",
    "training_steps": "training",
    "images": "generating images",
}
CURRENT_SECONDS = 60.0  # what was reported in them is under way
FIRST_SECONDS, FIRST_SHARE = 30.0, 0.05  # before both there is no time left
WIDEST_BAR = 40

Clock = Callable[[], float]


def seconds_left(elapsed: float, done: float, asked: float) -> float | None:
    """Seconds to the end of a phase at its mean speed so far; None before 30 s and 5 % of the work.

    Work comes in bursts (a batch of images, a pack's steps): the mean is over the whole phase, and the
    estimate grows while nothing comes.
    """
    if elapsed < FIRST_SECONDS or done < FIRST_SHARE * asked or not done:
        return None
    return max(0.0, asked - done) * elapsed / done


class Display:
    """Shows what workers report: live lines on a terminal, elsewhere a line at each tenth of the work."""

    def __init__(self, console: Console, *, quiet: bool = False, clock: Clock = time.monotonic) -> None:
        """Nothing is shown before `begin`; with `quiet` only warnings are."""
        self.console, self._clock = console, clock
        self._is_live = console.is_terminal and not quiet
        self._is_log = not console.is_terminal and not quiet
        self._spinner = Spinner("dots")
        self._heading = ""
        self._asked: Mapping[Kind, Count] = {}
        self._done: Counter[Kind | Event] = Counter()
        self._heard: dict[Kind | Event, float] = {}  # when a kind was reported last
        self._began = clock()
        self._printed_tenths = 0

    @contextmanager
    def live(self) -> Iterator[None]:
        """Keep the lines on screen while the block runs."""
        if not self._is_live:
            yield
            return
        with Live(get_renderable=lambda: self, console=self.console, refresh_per_second=8):
            yield

    def begin(self, heading: str, asked: Mapping[Kind, Count]) -> None:
        """Start a phase: so much is to be made in it."""
        self._heading, self._asked = heading, asked
        self._done, self._heard = Counter(), {}
        self._began, self._printed_tenths = self._clock(), 0
        if self._is_log:
            self.console.print(f"{heading}: {' · '.join(self._counts())}")

    def report(self, kind: Kind | Event, count: int) -> None:
        """Count what a worker has made."""
        self._done[kind] += count
        self._heard[kind] = self._clock()
        tenths = int(10 * self._share())
        if self._is_log and tenths > self._printed_tenths:
            self._printed_tenths = tenths
            left = self._left()
            counts = [*self._counts(), *([left] if left else [])]
            self.console.print(f"  {10 * tenths}%  {' · '.join(counts)}")

    def warn(self, text: str) -> None:
        """A line above the live ones, about something that costs no result."""
        self.console.print(styled(text, "yellow"))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """A line of what is under way, the bar with the time, and the counts; none wider than the screen."""
        if not self._heading:
            return
        width, share = options.max_width, self._share()
        elapsed = duration(self._clock() - self._began)
        facts = [f"{100 * share:.0f} %", f"{elapsed} so far", *filter(None, [self._left()])]
        spinner = cast(Text, self._spinner.render(console.get_time()))  # a spinner without a text of its own
        title = Text.assemble(spinner, " ", (self._heading, "bold"), ": ", ", ".join(self._under_way()))
        yield _fitted(title, width)
        bar = ProgressBar(total=1.0, completed=share, width=min(WIDEST_BAR, width - 4))
        yield Text("  ", end="")
        yield bar
        yield Text()
        for line in (*_filled(facts, width - 2), *_filled(self._counts(), width - 2)):
            yield _fitted(Text("  " + line, style="cyan"), width)

    def _under_way(self) -> list[str]:
        """What was reported in the last minute; else that which must be going on."""
        now = self._clock()
        recent = [
            activity
            for kind, activity in ACTIVITIES.items()
            if kind in self._heard
            and now - self._heard[kind] < CURRENT_SECONDS
            and self._done[kind] < self._missing(kind)
        ]
        if recent:
            return recent
        made = [kind for kind in self._asked if kind in ACTIVITIES and self._missing(kind)]
        if all(self._done[kind] >= self._missing(kind) for kind in made):
            return ["scoring"]
        return ["working"] if self._heard else ["starting workers and loading models"]

    def _left(self) -> str | None:
        left = seconds_left(self._clock() - self._began, self._passes_done(), self._passes_asked())
        return f"about {duration(left)} left" if left else None  # what follows the last pass is not known

    def _share(self) -> float:
        return min(1.0, self._passes_done() / (self._passes_asked() or 1.0))

    def _passes_done(self) -> float:
        return sum(self._unit(kind) * self._done[kind] for kind in self._asked)

    def _passes_asked(self) -> float:
        return sum(count.passes for count in self._asked.values())

    def _unit(self, kind: Kind) -> float:
        count = self._asked[kind]
        return count.passes / count.missing if count.missing else 0.0

    def _missing(self, kind: Kind) -> int:
        return self._asked[kind].missing if kind in self._asked else 0

    def _counts(self) -> list[str]:
        return [
            f"{LABELS[kind]} {min(self._done[kind], count.missing)}/{count.missing}"
            for kind, count in self._asked.items()
            if count.missing
        ]


def _filled(parts: list[str], width: int) -> Iterator[str]:
    """The parts on as few lines as have room for them; a part is never split."""
    line = ""
    for part in parts:
        longer = f"{line} · {part}" if line else part
        if line and cell_len(longer) > width:
            yield line
            longer = part
        line = longer
    if line:
        yield line


def _fitted(text: Text, width: int) -> Text:
    """On one line whatever the width."""
    text.no_wrap = True
    text.truncate(width, overflow="ellipsis")
    return text
