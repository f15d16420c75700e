"""The script for a GPU, on a CPU: it runs through, keeps to its times, and compares what is comparable."""

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import products
from benchmarks.gpu.__main__ import BEGIN, END, MAKERS, README, goals, main, write_readme
from benchmarks.gpu.parts import DoesNotFit, Done, Measurement, Part, Row, Values, run
from benchmarks.gpu.training import numbers


@pytest.mark.slow
def test_the_small_run_goes_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "found" / "gpu.json"
    monkeypatch.setattr(sys, "argv", ["gpu", "--small", "--output", str(output)])
    main()
    found = json.loads(output.read_text())
    assert [part["name"] for part in found["parts"]] == list(MAKERS)
    for part in found["parts"]:
        assert "failed" not in part and part["rows"], part
        for row in part["rows"]:
            assert "failed" not in row and ("values" in row) != ("skipped" in row), row
    steps = found["parts"][0]["rows"]
    assert steps[0]["what"]["way"] == "plain loop" and steps[0]["values"]["samples per s"] > 0
    assert all(goal["met"] is None for goal in found["goals"]), "goals are of full-size SDXL"
    printed = capsys.readouterr()
    assert printed.out == output.with_suffix(".md").read_text() + "\n"
    assert "#### Where a step's time goes" in printed.out and " s left] steps: " in printed.err


def part(measures: dict[str, Callable[[], Values]], *, limit: float = 60.0) -> Part:
    return Part(
        name="trial",
        title="Trial",
        limit=limit,
        measurements=lambda: [Measurement(what={"way": n}, measure=m) for n, m in measures.items()],
        columns=lambda row, _rows: {name: str(value) for name, value in (row.values or {}).items()},
    )


def rows_of(
    measures: dict[str, Callable[[], Values]], *, limit: float = 60.0, left: float = 60.0
) -> list[Row]:
    return run(part(measures, limit=limit), left=lambda: left, say=lambda _: None).rows


def good() -> Values:
    return {"s": 1.0}


def broken() -> Values:
    raise ValueError("no such kernel")


def too_large() -> Values:
    raise DoesNotFit("16 runs do not fit")


def endless() -> Values:
    while True:
        try:
            time.sleep(0.01)
        except Exception:  # what a library may do
            continue


def test_a_failure_stops_nothing_and_is_kept() -> None:
    rows = rows_of({"broken": broken, "too large": too_large, "good": good})
    assert rows[0].failed is not None and "no such kernel" in rows[0].failed and "Traceback" in rows[0].failed
    assert [row.word for row in rows] == [
        "failed: ValueError: no such kernel",
        "skipped: 16 runs do not fit",
        None,
    ]
    assert rows[2].values == {"s": 1.0}


@pytest.mark.parametrize(("limit", "left"), [(0.2, 60.0), (60.0, 0.2)])
def test_what_is_out_of_time_is_cut_off_or_skipped(limit: float, left: float) -> None:
    started = time.perf_counter()
    rows = rows_of({"endless": endless, "good": good}, limit=limit, left=left)
    assert [row.word for row in rows] == ["skipped: out of time, begun", "skipped: out of time"]
    assert time.perf_counter() - started < 5


def test_a_part_that_cannot_be_listed_is_a_failure_of_its_own() -> None:
    listed = part({})
    failing = Part(**{**vars(listed), "measurements": broken})
    done = run(failing, left=lambda: 60.0, say=lambda _: None)
    assert done.failed is not None and "no such kernel" in done.as_json()["failed"]


@pytest.mark.parametrize("ranks", [(8, 8), (8, 16, 40), (24,)])
def test_padded_and_grouped_products_are_alike(ranks: Sequence[int]) -> None:
    torch.manual_seed(0)
    down_IR, up_RO = torch.randn(16, sum(ranks)), torch.randn(sum(ranks), 24)
    found = []
    for way in (products.padded, products.grouped):
        x_KTI = torch.linspace(-1, 1, len(ranks) * 5 * 16).view(len(ranks), 5, 16).requires_grad_()
        result = way(down_IR, up_RO, ranks)(x_KTI)
        result.backward(torch.ones(result.shape))
        found.append((result.detach(), x_KTI.grad))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_goals_are_met_missed_or_not_known() -> None:
    def row(way: str, **values: float) -> Row:
        return Row(what={"images": "1024 px", "way": way}, values=dict(values))

    done = Done(part=part({}))
    done.rows = [
        row("plain loop", **{"s per step": 0.6, "samples per s": 1.7}),
        row("harness, alone", **{"s per step": 0.3, "samples per s": 3.3}),
        row("harness, 8 packed", **{"samples per s": 17.0, "share of peak": 0.36}),
        Row(what={"images": "1024 px", "way": "harness, 16 packed"}, skipped="out of time"),
    ]
    found = goals([done])
    assert [goal["met"] for goal in found] == [False, True, True, None]
    assert found[2]["measured"] == pytest.approx(10)
    assert numbers(done.rows[3]) == {}


def test_the_readme_has_a_place_for_the_tables(tmp_path: Path) -> None:
    text = README.read_text(encoding="utf-8")
    assert text.count(BEGIN) == 1 and END in text.partition(BEGIN)[2]
    copy = tmp_path / "README.md"
    copy.write_text(text, encoding="utf-8")
    write_readme(copy, "| a table |")
    write_readme(copy, "| another |")
    written = copy.read_text(encoding="utf-8")
    assert "| another |" in written and "| a table |" not in written
    assert written.partition(BEGIN)[0] == text.partition(BEGIN)[0]
    assert written.partition(END)[2] == text.partition(END)[2]
