"""What a notebook sees of a sweep: itself, its columns and images, comparisons with the report's numbers."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pandas.testing import assert_frame_equal

from harness import results as harness_results
from harness.errors import ConfigError, WorkspaceError
from harness.results import NotebookResults, infer, load, load_many, sweeps
from harness.results.headline import verdict
from harness.results.study import Study
from tests.reporting.report import example

NUMBERS = [
    "mean_difference",
    "ci_low",
    "ci_high",
    "p_value",
    "p_adjusted",
    "win_rate",
    "n_prompts",
    "n_pairs",
]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("notebook")


@pytest.fixture(scope="module")
def results(workspace: Path) -> NotebookResults:
    """2 recipes × 2 ranks × 2 step counts with a real effect; trial 2 failed."""
    example.build(workspace, example.config(n_prompts=12), gain=0.6)
    return load(workspace / "sweeps" / "example")


def main_rows(results: NotebookResults, split: str = "dev") -> pd.DataFrame:
    rows = results.summary.query("control == 'placebo' and metric == 'aesthetic' and split == @split")
    return rows.reset_index(drop=True)


def test_it_shows_the_verdict_and_the_controls_without_ids(results: NotebookResults) -> None:
    text, page = repr(results), results._repr_html_()
    headline = verdict(Study(results)).headline
    assert headline in text and headline in page
    assert len(text.splitlines()) <= 10
    assert page.count("<tr>") <= 25
    for control in ("baseline", "placebo", "sham"):
        assert f"− {control}" in text and f"<td>{control}</td>" in page
    for trial_id in results.trials["trial_id"]:
        assert trial_id not in text + page
    assert "1 failed" in text
    assert results == results and isinstance(hash(results), int)


@pytest.mark.parametrize("table", ["trials", "arms", "images", "scores", "summary", "pairs", "losses"])
def test_every_column_of_every_frame_is_explained(table: str, results: NotebookResults) -> None:
    frame = results.pairs() if table == "pairs" else getattr(results, table)
    explained = results.columns(table)
    assert explained["name"].tolist() == list(frame.columns)
    assert (explained["meaning"].str.len() > 3).all()
    never = explained.loc[explained["null"] == "", "name"]
    assert len(never) > 1
    assert not frame[never].isna().any(axis=None)


def test_an_unknown_table_is_refused(results: NotebookResults) -> None:
    with pytest.raises(ConfigError, match="no table 'pair'; allowed: trials"):
        results.columns("pair")


def test_comparing_an_arm_with_a_control_gives_the_summarys_numbers(results: NotebookResults) -> None:
    found = results.compare(a={"arm": "wrong_lora"}, b={"arm": "placebo"}, by=["trial_id"])
    wanted = main_rows(results).dropna(subset=["mean_difference"])
    both = found.merge(wanted[["trial_id"]], on="trial_id")
    assert len(both) == len(wanted) == 7
    columns = [*NUMBERS, "verdict", "n_pairs", "n_missing"]
    assert_frame_equal(both[columns], wanted[columns].reset_index(drop=True), check_dtype=False)


def test_infer_gives_the_summarys_numbers_too(results: NotebookResults) -> None:
    pairs = results.pairs().query("metric == 'aesthetic' and split == 'dev'")
    found = infer(pairs, by=["trial_id"])
    wanted = main_rows(results)
    assert found["trial_id"].tolist() == wanted["trial_id"].tolist()
    columns = ["mean_difference", "ci_low", "ci_high", "p_value", "n_pairs"]
    assert_frame_equal(found[columns], wanted[columns], check_dtype=False, atol=1e-12)
    assert found.loc[2, "reason"] == "no pairs"  # the failed trial


def test_two_ranks_are_compared_on_the_same_prompts_seeds_recipes_and_steps(
    results: NotebookResults,
) -> None:
    found = results.compare(a={"adapter.rank": 16}, b={"adapter.rank": 4}, by=["recipe"])
    wide = results.cells().query("arm == 'wrong_lora' and split == 'dev'")
    sides = [wide[wide["adapter.rank"] == rank] for rank in (16, 4)]
    keys = ["recipe", "training.steps", "prompt_id", "seed"]
    pairs = sides[0].merge(sides[1], on=keys)
    difference = (pairs["value_x"] - pairs["value_y"]).groupby(
        [pairs["recipe"], pairs["prompt_id"], pairs["seed"]]
    )
    by_hand = difference.mean().groupby(["recipe", "prompt_id"]).mean().groupby("recipe").mean()
    assert found.set_index("recipe")["mean_difference"].to_dict() == pytest.approx(by_hand.to_dict())
    swapped = results.compare(a={"adapter.rank": 4}, b={"adapter.rank": 16}, by=["recipe"])
    assert swapped["ci_low"].to_numpy() == pytest.approx(-found["ci_high"].to_numpy())


RANKS = {"a": {"adapter.rank": 4}, "b": {"adapter.rank": 16}}


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({**RANKS, "a": {"adapter.rnk": 4}}, "a: 'adapter.rnk' is not known; allowed: recipe"),
        ({**RANKS, "b": {"adapter.rank": 8}}, "b: adapter.rank has no value 8; there are 4, 16"),
        ({"a": {"adapter.rank": 4, "arm": "wrong_lora"}, "b": {"arm": "placebo"}}, "b: several images for"),
        ({**RANKS, "by": ["adapter.rank"]}, "by: 'adapter.rank' is no"),
        ({**RANKS, "metric": "beauty"}, "metric 'beauty' is not in"),
        ({**RANKS, "split": "train"}, "split 'train' is not known"),
        ({**RANKS, "split": "test"}, "no trial has"),
    ],
)
def test_what_cannot_be_compared_is_said(
    asked: dict[str, Any], message: str, results: NotebookResults
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        results.compare(**asked)
    assert len(str(caught.value)) < 300


def test_several_sweeps_load_together_and_are_compared(workspace: Path, results: NotebookResults) -> None:
    sweep = example.config(name="again", n_prompts=12)
    example.build(workspace, sweep, gain=0.1)
    listed = sweeps(workspace)
    assert listed["name"].tolist() == ["again", "example"] and listed["trials"].tolist() == [8, 8]
    both = load_many(listed["folder"].tolist())
    rows = both.summary["sweep"].value_counts()
    assert rows.to_dict() == dict.fromkeys(("again", "example"), len(results.summary))
    assert "again, example" in repr(both) and both.differences.empty
    assert both["example"].sweep["name"] == "example"
    found = both.compare(a={"sweep": "example"}, b={"sweep": "again"}, by=["recipe"])
    assert len(found) == 2 and (found["n_pairs"] > 0).all()


def test_a_damaged_sweep_is_listed_with_its_reason(tmp_path: Path) -> None:
    for name in ("good", "bad"):
        sweep = example.config(name=name, ranks=(4,), steps=(100,), n_prompts=10)
        example.build(tmp_path, sweep, failed=())
    (tmp_path / "sweeps" / "bad" / "trials.parquet").write_bytes(b"PAR1")
    bad, good = sweeps(tmp_path).to_dict("records")
    assert (good["name"], good["trials"]) == ("good", 2) and pd.isna(good["reason"])
    assert bad["name"] == "bad" and pd.isna(bad["trials"]) and "trials.parquet" in bad["reason"]


def test_sweeps_with_other_prompts_are_not_compared(workspace: Path, results: NotebookResults) -> None:
    example.build(workspace, example.config(name="fewer", n_prompts=10), gain=0.1)
    both = load_many([workspace / "sweeps" / name for name in ("example", "fewer")])
    assert set(both.differences["what"]) == {"prompts"}
    with pytest.raises(ConfigError, match=r"cannot be compared, they differ in prompts \(example: 12"):
        both.compare(a={"sweep": "example"}, b={"sweep": "fewer"})
    with pytest.raises(ConfigError, match="two sweeps are named 'example'"):
        load_many([workspace / "sweeps" / "example"] * 2)


def test_figures_show_what_they_are_given(results: NotebookResults, tmp_path: Path) -> None:
    plot = harness_results.plot
    dev = main_rows(results)
    damaged = dev[dev["recipe"] == "damaged"]
    heat = plot.heat_map(damaged, x="training.steps", y="adapter.rank")
    assert len(heat.texts) == 4 and "[" in heat.texts[0].get_text()
    with pytest.raises(ConfigError, match="several rows have the same"):
        plot.heat_map(dev, x="training.steps", y="adapter.rank")
    with pytest.raises(ConfigError, match="no column 'rank'"):
        plot.forest(dev, label=["rank"])
    dose = plot.dose_response(dev, x="training.steps", by=["recipe", "adapter.rank"])
    lines = [line for line in dose.lines if line.get_marker() in ("o", "s", "^", "D")]
    styles = [(line.get_color(), line.get_marker()) for line in lines]
    assert len(set(styles)) == len(styles) == 4
    forest = plot.forest(dev, label=["recipe", "adapter.rank", "training.steps"])
    assert len(forest.get_yticklabels()) == 7  # the failed trial has no difference
    parallel = plot.parallel_coordinates(dev, columns=["recipe", "adapter.rank"])
    assert len(parallel.lines) == 7 + 3
    pairs = results.pairs(split="test")
    slopes = plot.slopes(pairs.query("metric == 'aesthetic'"))
    assert len(slopes.lines) == pairs["prompt_id"].nunique() + 1
    scatter = plot.metric_by_metric(pairs, x="saturation", y="aesthetic")
    assert scatter.get_title().startswith("6 prompts, ρ = ")
    with pytest.raises(ConfigError, match="no 'beauty' in the frame; there are clip_score"):
        plot.metric_by_metric(pairs, x="beauty", y="aesthetic")


def test_images_are_shown_side_by_side_and_in_a_grid(results: NotebookResults) -> None:
    pairs = results.pairs(split="test").query("metric == 'aesthetic'")
    shown = results.show(pairs.head(3))
    assert len(shown.images) == 6
    assert len(results.show(results.images.head(7)).images) == 7
    ends = harness_results.plot.best_and_worst(results, pairs, n=2)
    best = pairs.sort_values("difference").iloc[-1]
    first = results.image(best["image_id_control"])
    assert np.asarray(ends.images[0].get_array()).tobytes() == first.tobytes()
    grid = results.grid(x="arm", y="prompt", seed=0)
    words = [text.get_text() for text in grid.texts]
    assert {"baseline", "placebo", "sham", "wrong_lora", "a fox on a beach"} <= set(words)
    assert len(grid.images) == 4 * 6
    axes = results.grid(x="training.steps", y="adapter.rank", recipe="keywords")
    assert len(axes.images) == 3  # the failed trial's place is empty
    with pytest.raises(ConfigError, match=r"grid: 'rank' is not in this sweep; allowed: recipe, adapter"):
        results.grid(x="rank", y="arm")
    with pytest.raises(ConfigError, match="grid: seed: 9 is not in this sweep; allowed: 0, 1"):
        results.grid(x="arm", y="prompt", seed=9)
    with pytest.raises(ConfigError, match="give rows of pairs"):
        results.show(results.trials)


def test_a_workspace_that_is_none_says_so(tmp_path: Path) -> None:
    with pytest.raises(WorkspaceError, match="no such folder"):
        load(tmp_path / "sweeps" / "nothing")
