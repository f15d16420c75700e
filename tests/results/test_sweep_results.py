import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from harness.errors import ArtifactError, ConfigError, WorkspaceError
from harness.results import Results
from harness.store.workspace import Workspace
from tests.reporting.report import example
from tests.results.sweeps import ARM, METRICS, make_tables


def value(arm: str, trial: str | None, prompt: int, seed: int, metric: str) -> float | None:
    if metric == "aesthetic" and arm == "placebo" and prompt == 1:
        return None
    return 100.0 * (arm == ARM) + 10.0 * prompt + seed + (0.5 if metric == "saturation" else 0.0)


@pytest.fixture
def results() -> Results:
    frames = make_tables(value, trials=3, prompts={"dev": 3, "test": 2}, test_trials=[1], failed=[2])
    sweep = {"metrics": [{"name": metric.name} for metric in METRICS]}
    return Results(
        trials=frames["trials"],
        arms=frames["arms"],
        images=frames["images"],
        scores=frames["scores"],
        summary=pd.DataFrame(),
        sweep=sweep,
    )


def test_a_pair_is_two_images_of_one_prompt_and_seed(results: Results) -> None:
    pairs = results.pairs(control="baseline")
    dev, test = (pairs[pairs["split"] == split] for split in ("dev", "test"))
    assert len(dev) == 3 * 3 * 2 * 2  # trials × prompts × seeds × metrics, the failed trial among them
    assert len(test) == 1 * 2 * 2 * 2
    row = dev[(dev["trial_id"] == "t0") & (dev["prompt_id"] == "dev002") & (dev["seed"] == 1)].iloc[0]
    assert (row["value_arm"], row["value_control"], row["difference"]) == (121.0, 21.0, 100.0)
    assert (row["image_id_arm"], row["image_id_control"]) == ("d-t0-dev002-1", "d-baseline-dev002-1")
    assert (row["path_arm"], row["arm"], row["control"]) == ("images/d-t0-dev002-1.png", ARM, "baseline")
    assert pd.isna(row["reason"])


def test_a_missing_side_is_null_with_its_own_reason(results: Results) -> None:
    pairs = results.pairs(control="placebo", split="dev")
    pairs = pairs[(pairs["metric"] == "aesthetic") & (pairs["seed"] == 0)]
    rows = pairs.set_index(pairs["trial_id"] + " " + pairs["prompt_id"])
    unread = rows.loc[["t0 dev001"]]
    assert unread["value_arm"].tolist() == [110.0]
    assert unread["difference"].isna().all()
    assert unread["reason"].tolist() == ["control: the image cannot be read: not an image"]
    undrawn = rows.loc[["t2 dev000"]]
    assert undrawn[["image_id_arm", "path_arm", "value_arm"]].isna().all(axis=None)
    assert undrawn["value_control"].tolist() == [0.0]
    assert undrawn["reason"].tolist() == ["arm: no image (the loss became NaN)"]
    both = rows.loc["t2 dev001"]["reason"]
    assert both == "arm: no image (the loss became NaN); control: the image cannot be read: not an image"
    assert pairs["reason"].isna().equals(pairs["difference"].notna())


def test_an_arm_may_be_any_arm(results: Results) -> None:
    pairs = results.pairs(control="baseline", arm="placebo", split="dev")
    assert set(pairs["arm"]) == {"placebo"}
    assert pairs.loc[pairs["metric"] == "saturation", "difference"].eq(0).all()
    assert set(results.pairs(control="placebo")["arm"]) == {ARM}


def test_a_control_with_a_draw_per_trial_is_paired_with_its_own_trial(results: Results) -> None:
    """A sham is trained with each trial's settings: only the arms table knows which images are whose."""
    of_t1 = (results.arms["trial_id"] == "t1") & (results.arms["arm"] == "placebo")
    results.arms.loc[of_t1, "arm_id"] = "d-baseline"
    pairs = results.pairs(control="placebo", split="dev")
    pairs = pairs[(pairs["metric"] == "aesthetic") & (pairs["prompt_id"] == "dev001")]
    assert pairs.loc[pairs["trial_id"] == "t0", "value_control"].isna().all()
    assert pairs.loc[pairs["trial_id"] == "t1", "value_control"].tolist() == [10.0, 11.0]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (
            {"control": "placbo"},
            "control 'placbo' is not in this sweep; allowed: baseline, placebo, wrong_lora",
        ),
        ({"control": "placebo", "arm": "placebo"}, "arm 'placebo' .*; allowed: baseline, wrong_lora"),
        ({"control": "placebo", "split": "train"}, "split 'train' is not in this sweep; allowed: dev, test"),
    ],
)
def test_a_wrong_name_lists_the_right_ones(results: Results, asked: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        results.pairs(**asked)


def test_pairs_start_from_the_same_latents(results: Results) -> None:
    results.images.loc[results.images["image_id"] == "d-t1-test001-0", "latent_hash"] = "other"
    assert len(results.pairs(control="placebo", split="dev"))
    with pytest.raises(
        ArtifactError, match=r"'test prompt 1', seed 0: arms d-t1 and d-placebo did not start"
    ):
        results.pairs(control="placebo")


def test_wide_has_one_row_per_image_and_one_column_per_metric(results: Results) -> None:
    wide = results.wide()
    assert len(wide) == len(results.images)
    assert list(wide.columns) == [*results.images.columns, "aesthetic", "saturation"]
    rows = wide.set_index("image_id").loc[["d-placebo-dev001-0"]]
    assert rows["aesthetic"].isna().all()
    assert rows["saturation"].tolist() == [10.5]


def test_a_notebook_pays_for_neither_torch_nor_ray() -> None:
    code = (
        "import sys; from harness import results; from harness.results import summary, tables; "
        "print([m for m in ('torch', 'ray', 'open_clip', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_pairs_and_summary_carry_the_axes(tmp_path: Path) -> None:
    results = example.build(tmp_path, example.config(n_prompts=12, seeds=(0,)))
    for frame in (results.pairs(), results.summary):
        assert list(frame.columns)[:4] == ["trial_id", "recipe", "adapter.rank", "training.steps"]
        ranks = results.trials.set_index("trial_id")["adapter.rank"]
        assert frame["adapter.rank"].tolist() == ranks[frame["trial_id"]].tolist()
    assert set(results.pairs()["control"]) == {"placebo"}  # the sweep's own


def test_losses_and_images_come_from_the_workspace(tmp_path: Path) -> None:
    results = example.build(tmp_path, example.config(ranks=(4,), n_prompts=12, seeds=(0,)), failed=())
    losses = results.losses
    assert list(losses.columns) == ["run_id", "step", "loss", "validation_loss"]
    assert losses.groupby("run_id")["step"].max().tolist() == [200, 200]
    assert losses["loss"].iloc[0] == pytest.approx(0.28) and losses["validation_loss"].isna().all()
    first = results.images.iloc[0]
    assert results.path(first["image_id"]) == tmp_path / first["path"]
    assert results.image(first["image_id"]).size == (64, 64)
    (tmp_path / first["path"]).unlink()
    with pytest.raises(WorkspaceError, match="is gone from the workspace"):
        results.image(first["image_id"])
    with pytest.raises(ConfigError, match="no image 'x'"):
        results.path("x")


def test_images_come_from_a_bucket(s3: str, tmp_path: Path) -> None:
    results = example.build(tmp_path, example.config(ranks=(4,), n_prompts=12, seeds=(0,)))
    one = results.images.iloc[0]
    store = Workspace(s3)
    arm_id, chunk = Path(one["path"]).parts[1:3]
    with store.images(arm_id, chunk).build() as folder:
        shutil.copy(tmp_path / one["path"], folder)
    shown = replace(results, workspace=store).image(one["image_id"])
    assert shown.tobytes() == results.image(one["image_id"]).tobytes()


def test_tables_without_a_workspace_say_so(results: Results) -> None:
    with pytest.raises(WorkspaceError, match=r"open the sweep with results\.load"):
        results.image("d-t1-test001-0")
    assert results == results and hash(results) == hash(results)
