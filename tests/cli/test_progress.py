"""The live display at several widths, and the time left, by a clock of the test's own."""

from io import StringIO

import pytest
from rich.cells import cell_len
from rich.console import Console

from harness.cli.progress import Display, seconds_left
from harness.engine.stages.context import Count, Kind

ASKED: dict[Kind, Count] = {
    "dataset_images": Count(asked=600, missing=600, passes=24_000.0),
    "training_steps": Count(asked=128_000, missing=128_000, passes=384_000.0),
    "images": Count(asked=36_864, missing=36_864, passes=1_474_560.0),
    "trials": Count(asked=256, missing=256),
}


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def terminal(width: int) -> Console:
    return Console(file=StringIO(), force_terminal=True, width=width, color_system=None)


def screen(display: Display) -> list[str]:
    console = display.console
    with console.capture() as capture:
        console.print(display)
    return capture.get().splitlines()


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_no_line_is_wider_than_the_screen_and_no_count_is_split(width: int, clock: Clock) -> None:
    display = Display(terminal(width), clock=clock)
    display.begin("trials", ASKED)
    clock.now = 40 * 3600.0
    for kind, done in (("training_steps", 100_000), ("dataset_images", 600), ("images", 12_345)):
        display.report(kind, done)  # type: ignore[arg-type]
    lines = screen(display)
    assert all(cell_len(line) <= width for line in lines)
    shown = "\n".join(lines)
    for whole in ("training images 600/600", "training steps 100000/128000", "images 12345/36864"):
        assert whole in shown
    assert "trials 0/256" in shown and "left" in shown and "1 d 16 h so far" in shown
    assert "training, generating images" in shown or width < 60


def test_it_says_what_is_under_way(clock: Clock) -> None:
    display = Display(terminal(80), clock=clock)

    def line() -> str:
        return screen(display)[0]

    assert screen(display) == [], "nothing has begun"
    display.begin("trials", ASKED)
    assert "trials: starting workers and loading models" in line()
    display.report("dataset_images", 300)
    assert "trials: generating training images" in line()
    display.report("dataset_images", 300)
    assert "trials: working" in line(), "which is not known yet"
    display.report("training_steps", 128_000)
    display.report("images", 10)
    assert "trials: generating images" in line()
    clock.now = 120.0
    assert "trials: working" in line()
    display.report("images", 36_854)
    assert "trials: scoring" in line()
    display.begin("confirmation", {"images": Count(asked=96, missing=96, passes=96.0)})
    assert "confirmation: starting" in line()


def test_no_time_left_before_there_is_one() -> None:
    assert seconds_left(29.0, 50.0, 100.0) is None
    assert seconds_left(1000.0, 4.0, 100.0) is None
    assert seconds_left(1000.0, 0.0, 0.0) is None
    assert seconds_left(50.0, 50.0, 100.0) == 50.0
    assert seconds_left(50.0, 110.0, 100.0) == 0.0, "work that was done twice"


def test_bursts_give_an_estimate_within_a_factor_of_two() -> None:
    """Eight images at the end of each minute, 400 in all."""
    for second in range(3 * 60, 40 * 60):
        done = 8.0 * (second // 60)
        found, true = seconds_left(float(second), done, 400.0), (400.0 / 8) * 60 - second
        assert found is not None and true / 2 < found < true * 2 + 60
    quiet = [seconds_left(180.0 + waited, 24.0, 400.0) or 0.0 for waited in range(0, 300, 30)]
    assert quiet == sorted(quiet) and quiet[-1] > 2 * quiet[0], "it grows while nothing comes"


def test_a_log_has_a_line_at_each_tenth_and_quiet_has_none(clock: Clock) -> None:
    found = {}
    for quiet in (False, True):
        console = Console(file=StringIO(), force_terminal=False, width=10_000)
        display = Display(console, quiet=quiet, clock=clock)
        with display.live():
            display.begin("trials", {"images": Count(asked=100, missing=100, passes=100.0)})
            for _ in range(50):
                clock.now += 2.0
                display.report("images", 2)
            display.warn("tracking: a warning")
        assert isinstance(console.file, StringIO)
        found[quiet] = console.file.getvalue().splitlines()
    assert found[True] == ["tracking: a warning"]
    assert len(found[False]) == 12 and found[False][0] == "trials: images 0/100"
    assert found[False][5].startswith("  50%  images 50/100 · about ")
