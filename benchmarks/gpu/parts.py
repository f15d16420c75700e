"""Parts of a run, each with its time limit: what is out of time is skipped with a word, a failure noted."""

import signal
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

Values = dict[str, float | int | str | None]

AGAIN = 5.0  # seconds: an exception in a finalizer is lost
LINES_OF_A_FAILURE = 12  # the last ones of its traceback


class DoesNotFit(Exception):
    """What is to be measured needs more memory than there is."""


class _OutOfTime(BaseException):
    """Not an Exception, which what is interrupted might catch."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """A row of a table: what is measured, by column, and the function that measures it."""

    what: dict[str, str]
    measure: Callable[[], Values]
    leave_out: str | None = None  # why it is not measured here


@dataclass(kw_only=True)
class Row:
    """What came of a measurement: values, or why there are none."""

    what: dict[str, str]
    values: Values | None = None
    skipped: str | None = None
    failed: str | None = None
    seconds: float = 0.0

    @property
    def word(self) -> str | None:
        """What a table has in place of values."""
        if self.failed is not None:
            return f"failed: {self.failed.strip().splitlines()[-1][:120]}"
        return None if self.skipped is None else f"skipped: {self.skipped}"


@dataclass(frozen=True, kw_only=True)
class Part:
    """Some measurements, most important first, and the seconds that they may take together.

    `columns` gives the columns of a row with values, by all rows: what is compared needs the others.
    """

    name: str
    title: str
    limit: float
    measurements: Callable[[], Sequence[Measurement]]
    columns: Callable[[Row, Sequence[Row]], dict[str, str]]


@dataclass(kw_only=True)
class Done:
    """A part that was run. `failed` where not even its measurements could be listed."""

    part: Part
    rows: list[Row] = field(default_factory=list)
    failed: str | None = None
    seconds: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        rows = [{name: value for name, value in vars(row).items() if value is not None} for row in self.rows]
        return {
            "name": self.part.name,
            "title": self.part.title,
            "seconds": self.seconds,
            "limit": self.part.limit,
            "rows": rows,
        } | ({} if self.failed is None else {"failed": self.failed})


def run(part: Part, *, left: Callable[[], float], say: Callable[[str], None]) -> Done:
    """Run a part. `left`: seconds that the whole run still has. `say` is given a line a measurement."""
    done, started = Done(part=part), time.perf_counter()
    end = started + min(part.limit, left())
    measurements: Sequence[Measurement] = ()
    try:
        with _at_most(end - started):
            measurements = part.measurements()
    except _OutOfTime:
        done.rows.append(Row(what={"part": part.name}, skipped="out of time"))
    except Exception as error:
        done.failed = _text(error)
    for measurement in measurements:
        row = _row(measurement, end - time.perf_counter())
        done.rows.append(row)
        say(f"{part.name}: {', '.join(row.what.values())}: {row.word or f'{row.seconds:.0f} s'}")
    done.seconds = time.perf_counter() - started
    return done


def _row(measurement: Measurement, seconds: float) -> Row:
    row = Row(what=measurement.what)
    if measurement.leave_out is not None:
        row.skipped = measurement.leave_out
    elif seconds <= 0:
        row.skipped = "out of time"
    else:
        started = time.perf_counter()
        try:
            with _at_most(seconds):
                row.values = measurement.measure()
        except DoesNotFit as error:
            row.skipped = str(error)
        except _OutOfTime:
            row.skipped = "out of time, begun"
        except Exception as error:
            row.failed = _text(error)
        row.seconds = time.perf_counter() - started
    return row


@contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """Interrupt the block after this time, between two operations of Python; again, where that was lost."""

    def interrupt(_signal: int, _frame: object) -> None:
        raise _OutOfTime

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-3), AGAIN)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _text(error: BaseException) -> str:
    lines = "".join(traceback.format_exception(error)).strip().splitlines()
    return "\n".join(lines[-LINES_OF_A_FAILURE:])
