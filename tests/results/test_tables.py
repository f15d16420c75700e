import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from harness import results
from harness.errors import ArtifactError, WorkspaceError
from harness.results import tables
from harness.results.summary import summarise
from harness.store.artifact import read_json, sha256, write_json
from tests.results.sweeps import ANALYSIS, METRICS, make_tables


def value(arm: str, trial: str | None, prompt: int, seed: int, metric: str) -> float | None:
    return None if prompt == 3 else prompt + 0.25 * seed + (0.5 if trial else 0.0) * (prompt + 1)


@pytest.fixture
def written(tmp_path: Path) -> Path:
    frames = make_tables(value, trials=2, prompts={"dev": 6, "test": 6}, test_trials=[0], failed=[1])
    summary = summarise(**frames, against=None, analysis=ANALYSIS, metrics=METRICS)
    metrics = [metric.model_dump(mode="json") for metric in METRICS]
    sweep: dict[str, Any] = {"name": "x", "metrics": metrics, **dict.fromkeys(tables.FACTS)}
    tables.write(tmp_path / "sweeps" / "x", **frames, summary=summary, sweep=sweep)
    return tmp_path / "sweeps" / "x"


def test_what_is_written_is_read(written: Path) -> None:
    frames = make_tables(value, trials=2, prompts={"dev": 6, "test": 6}, test_trials=[0], failed=[1])
    loaded = results.load(written)
    pd.testing.assert_frame_equal(loaded.images, frames["images"])
    pd.testing.assert_frame_equal(loaded.scores, frames["scores"])
    pd.testing.assert_frame_equal(loaded.arms, frames["arms"])
    assert loaded.trials["adapter.rank"].tolist() == [4, 8]
    assert loaded.sweep["name"] == "x"
    assert sorted(path.name for path in written.iterdir()) == sorted(
        [
            "trials.parquet",
            "arms.parquet",
            "images.parquet",
            "scores.parquet",
            "summary.parquet",
            "hashes.json",
            "sweep.json",
        ]
    )


def test_missing_is_null_not_zero_nor_false(written: Path) -> None:
    loaded = results.load(written)
    unread = 3 * 2 * 2 * 2  # draws × splits × seeds × metrics
    assert pq.read_table(written / "scores.parquet")["value"].null_count == unread
    assert loaded.scores["value"].isna().sum() == unread
    assert loaded.scores["prompt_truncated"].isna().all()
    failed = loaded.trials.iloc[1]
    assert pd.isna(failed["final_loss"]) and pd.isna(failed["adapter_path"])
    assert failed["reason"] == "the loss became NaN"
    assert pd.isna(loaded.trials["reason"][0])
    assert loaded.images["tags"].tolist()[0] == []


def test_a_trial_row_keeps_axis_columns_of_any_type() -> None:
    frame = make_tables(value, trials=2, prompts={})["trials"]
    frame["adapter.alpha"] = pd.Series([4, "sqrt_rank"], dtype=object)
    frame["recipe"] = ["degrade", "folder"]
    frame["training.learning_rate"] = [1, 0.5]
    table = tables.to_arrow(frame, tables.TRIALS)
    assert table["adapter.alpha"].to_pylist() == ["4", "sqrt_rank"]
    assert table["training.learning_rate"].to_pylist() == [1.0, 0.5]
    assert table.column_names.index("adapter.alpha") < table.column_names.index("config")


def test_an_axis_that_is_not_applied_is_null_and_the_others_stay_whole() -> None:
    frame = make_tables(value, trials=2, prompts={})["trials"]
    frame["adapter.rank"] = pd.Series([8, None], dtype=object)
    column = tables.to_arrow(frame, tables.TRIALS)["adapter.rank"]
    assert (str(column.type), column.to_pylist()) == ("int64", [8, None])


@pytest.mark.parametrize(("name", "column"), [("scores", "adapter.rank"), ("trials", "loss")])
def test_a_column_that_no_schema_knows_is_refused(name: str, column: str) -> None:
    frame = make_tables(value, trials=1, prompts={"dev": 1})[name].assign(**{column: 1})
    with pytest.raises(AssertionError, match=column):
        tables.to_arrow(frame, tables.SCHEMAS[name])


def test_an_empty_table_has_its_types() -> None:
    frame = tables.empty("scores")
    assert len(frame) == 0
    assert list(frame.columns) == tables.SCORES.names
    assert frame["value"].dtype == np.float64


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(WorkspaceError, match=r"no such folder: .*nowhere; give WORKSPACE/sweeps/NAME"):
        results.load(tmp_path / "nowhere")


def test_an_unfinished_sweep(written: Path) -> None:
    (written / "sweep.json").unlink()
    with pytest.raises(WorkspaceError, match=r"is not a finished sweep: it has no sweep\.json"):
        results.load(written)


@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_a_damaged_table(written: Path, damage: str) -> None:
    path = written / "scores.parquet"
    content = path.read_bytes()
    path.unlink()
    if damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    with pytest.raises(
        ArtifactError, match=r"scores\.parquet is missing or damaged; run `harness run` again"
    ):
        results.load(written)


def test_every_flipped_bit_is_found(written: Path) -> None:
    """Of each file, some bits all over it: never other numbers, and never a crash of the reader."""
    for name in tables.FILES:
        path = written / name
        content = path.read_bytes()
        for place in range(0, 8 * len(content), max(1, 8 * len(content) // 40)):
            damaged = bytearray(content)
            damaged[place // 8] ^= 1 << place % 8
            path.write_bytes(damaged)
            with pytest.raises((ArtifactError, WorkspaceError)):
                results.load(written)
        path.write_bytes(content)
    results.load(written)


def test_a_damaged_description(written: Path) -> None:
    (written / "sweep.json").write_text('{"name": ')
    with pytest.raises(ArtifactError, match=r"sweep\.json is damaged"):
        results.load(written)


def test_a_table_of_another_version(written: Path) -> None:
    path = written / "images.parquet"
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata({"harness_schema": "0"}), path)
    hashes = {**read_json(written / tables.HASHES), path.name: sha256(path)}
    write_json(written / tables.HASHES, hashes)
    with pytest.raises(ArtifactError, match=f"version 0, this harness reads {tables.SCHEMA_VERSION}"):
        results.load(written)


def test_a_write_that_fails_leaves_no_sweep_that_looks_finished(written: Path) -> None:
    loaded = results.load(written)
    frames = {name: getattr(loaded, name) for name in tables.SCHEMAS}
    frames["summary"] = frames["summary"][tables.SUMMARY.names]  # without the axes of its trials
    (written / "images.parquet").unlink()
    (written / "images.parquet").mkdir()  # cannot be replaced by a file
    with pytest.raises(OSError):
        tables.write(written, **frames, sweep={"name": "y"})
    assert not (written / "sweep.json").exists()
    assert not [path for path in written.iterdir() if path.name.startswith(".")]


def test_numbers_that_json_does_not_know_are_refused_before_anything_is_touched(written: Path) -> None:
    before = json.loads((written / "sweep.json").read_text())
    loaded = results.load(written)
    frames = {name: getattr(loaded, name) for name in tables.SCHEMAS}
    frames["summary"] = frames["summary"][tables.SUMMARY.names]  # without the axes of its trials
    with pytest.raises(ValueError, match="JSON"):
        tables.write(written, **frames, sweep={"seconds": float("nan")})
    assert json.loads((written / "sweep.json").read_text()) == before
