"""The live display of a running sweep: stage, trials, images, training steps, time left."""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from harness.cli.console import styled
from harness.engine.stages.context import Count, Event, Kind

LABELS: dict[Kind, str] = {
    "dataset_images": "training images",
    "training_steps": "training steps",
    "images": "images",
    "trials": "trials",
}


class Display:
    """Shows what workers report. On a terminal one live line; elsewhere a line at each tenth of the work."""

    def __init__(self, console: Console) -> None:
        """Nothing is shown before `begin`."""
        self.console = console
        self.progress = Progress(
            SpinnerColumn(),
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=20),
            TextColumn("{task.percentage:>3.0f}%"),
            _Counts(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            speed_estimate_period=60,
            disable=not console.is_terminal,
        )
        self.done: Counter[Kind | Event] = Counter()
        self.asked: Mapping[Kind, Count] = {}
        self.printed_tenths = 0

    @contextmanager
    def live(self) -> Iterator[None]:
        """Keep the line on screen while the block runs."""
        with self.progress:
            yield

    def begin(self, artifact: str, asked: Mapping[Kind, Count]) -> None:
        """Start a phase: so much is to be made in it."""
        self.asked = asked
        self.done, self.printed_tenths = Counter(), 0
        for task_id in self.progress.task_ids:
            self.progress.remove_task(task_id)
        self.progress.add_task(artifact, total=self._passes_asked() or 1.0, counts=self._counts())
        if not self.console.is_terminal:
            self.console.print(f"{artifact}: {self._counts()}")

    def report(self, kind: Kind | Event, count: int) -> None:
        """Count what a worker has made."""
        self.done[kind] += count
        passes = sum(self._unit(kind) * self.done[kind] for kind in self.asked)
        for task_id in self.progress.task_ids:
            self.progress.update(task_id, completed=passes, counts=self._counts())
        tenths = int(10 * passes / (self._passes_asked() or 1.0))
        if not self.console.is_terminal and tenths > self.printed_tenths:
            self.printed_tenths = tenths
            self.console.print(f"  {10 * tenths}%  {self._counts()}")

    def warn(self, text: str) -> None:
        """A line above the live one, about something that costs no result."""
        self.console.print(styled(text, "yellow"))

    def _unit(self, kind: Kind) -> float:
        count = self.asked[kind]
        return count.passes / count.missing if count.missing else 0.0

    def _passes_asked(self) -> float:
        return sum(count.passes for count in self.asked.values())

    def _counts(self) -> str:
        return " · ".join(
            f"{LABELS[kind]} {min(self.done[kind], count.missing)}/{count.missing}"
            for kind, count in self.asked.items()
            if count.missing
        )


class _Counts(ProgressColumn):
    """The counts, in the middle of the line."""

    def render(self, task: Task) -> Text:
        return Text(task.fields["counts"], style="cyan")
