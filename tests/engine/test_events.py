"""What befell a sweep is counted over all its calls, and a driver that was lost is noticed by the next."""

import json
import time
from pathlib import Path

import pytest

from harness.engine import events as events_module
from harness.engine.events import EVENTS, Events
from harness.results.format import events as said
from harness.store.workspace import Workspace


def test_counts_last_over_calls(tmp_path: Path) -> None:
    for _ in range(2):
        events = Events(Workspace(tmp_path), "s")
        with events.driving():
            events.add("worker lost", 2)
    (row,) = events.rows()
    assert row["what"] == "worker lost" and row["count"] == 4 and row["first"] <= row["last"]
    (line,) = said([row])
    assert line.startswith(
        "a worker was killed, ended by itself or could not be reached: 4 times, last at 20"
    )


def test_time_is_summed_over_calls_and_that_between_them_is_not_counted(tmp_path: Path) -> None:
    first = Events(Workspace(tmp_path), "s")
    with first.driving():
        time.sleep(0.2)
    time.sleep(0.5)
    second = Events(Workspace(tmp_path), "s")
    with second.driving():
        assert second.seconds >= 0.2
        kept = json.loads((tmp_path / "sweeps/s" / EVENTS).read_text())["seconds"]
    assert 0.2 <= kept < first.seconds - 0.4


def test_a_killed_driver_has_kept_its_time_up_to_its_last_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events_module, "SAVE_EVERY_SECONDS", 0.1)
    killed = Events(Workspace(tmp_path), "s")
    killed.driving().__enter__()
    time.sleep(0.2)
    killed.made("images", 8)
    again = Events(Workspace(tmp_path), "s")
    with again.driving():
        assert again.seconds >= 0.2


def test_a_driver_that_came_to_no_end_was_lost(tmp_path: Path) -> None:
    killed = Events(Workspace(tmp_path), "s").driving()
    killed.__enter__()
    again = Events(Workspace(tmp_path), "s")
    with pytest.raises(KeyboardInterrupt), again.driving():
        raise KeyboardInterrupt
    last = Events(Workspace(tmp_path), "s")
    with last.driving():
        assert [(row["what"], row["count"]) for row in last.rows()] == [("driver lost", 1)]


def test_a_damaged_file_counts_as_none(tmp_path: Path) -> None:
    (tmp_path / "sweeps/s").mkdir(parents=True)
    (tmp_path / "sweeps/s" / EVENTS).write_text('{"driven": tr')
    events = Events(Workspace(tmp_path), "s")
    with events.driving():
        assert events.rows() == []
