"""The story of a sweep on tiny models: complete, never twice, extended, repaired, reproducible."""

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from harness import results
from harness.config.plan.plan import Plan
from harness.config.schema.model import SdxlModel
from harness.engine.collect import collect
from harness.engine.completion import marked
from harness.engine.events import Events
from harness.engine.executors.local import LocalExecutor
from harness.engine.outcomes import Outcome
from harness.engine.pipeline import UNMADE, SweepRun, run_sweep, run_trial
from harness.engine.queue import Queue
from harness.engine.stages.context import Context
from harness.errors import ModelError
from harness.reporting.wandb_runs import LOSS, all_runs
from harness.store.workspace import Workspace
from tests.sweeps.small import PLAIN, small_plan


class Made:
    """Counts what is made, as a display would."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def __call__(self, kind: str, count: int) -> None:
        self.counts[kind] += count


def carry_out(plan: Plan, root: Path) -> tuple[SweepRun, Counter[str]]:
    made = Made()
    ctx = Context.of(plan, root, made)
    finished = run_sweep(plan, ctx, LocalExecutor(), announce=lambda *_: None, publish=lambda _: True)
    return finished, made.counts


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory, tiny_config: SdxlModel, tiny_clip: str) -> Plan:
    return small_plan(tmp_path_factory.mktemp("sweep"), tiny_config, tiny_clip)


@pytest.fixture(scope="module")
def finished(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SweepRun, Counter[str]]:
    root = tmp_path_factory.mktemp("workspace")
    return root, *carry_out(plan, root)


def test_a_finished_sweep_tells_its_time_and_its_losses(
    finished: tuple[Path, SweepRun, Counter[str]], plan: Plan
) -> None:
    root, run, _ = finished
    assert run.results.sweep["seconds"] > sum(run.results.trials["train_seconds"].drop_duplicates()) / 2
    mirrored = [r for r in all_runs(run.results, Workspace(root), images_per_arm=0) if r.job_type == "trial"]
    losses = [sum(LOSS in row for row in one.history) for one in mirrored]
    assert losses == [trial.config.trained.training.steps for trial in plan.trials]


def test_a_sweep_makes_everything_once(finished: tuple[Path, SweepRun, Counter[str]]) -> None:
    _, run, made = finished
    assert not [outcome for outcome in run.outcomes if outcome.failed]
    assert made == {
        "dataset_images": 4 + 3,  # keywords × guidance, and the sham's plain images
        "training_steps": 4 + 4,  # one run with two checkpoints, and its sham's
        "images": 2 * 6 + 4 * 4 + 2 * 2,  # controls on all prompts, adapters on dev, the selected one on test
        "trials": 2,
    }


def test_its_tables_are_whole(finished: tuple[Path, SweepRun, Counter[str]], plan: Plan) -> None:
    root, run, _ = finished
    loaded = results.load(root / "sweeps" / "small")
    assert list(loaded.trials["status"]) == ["completed", "completed"]
    assert list(loaded.trials["training.steps"]) == [2, 4]
    assert loaded.trials["selected"].sum() == 1
    assert len(loaded.images) == 32
    assert set(loaded.scores["image_id"]) == set(loaded.images["image_id"])
    assert loaded.scores["value"].notna().all()
    assert (root / loaded.images["path"][0]).is_file()
    adapter = root / loaded.trials["adapter_path"][0] / "pytorch_lora_weights.safetensors"
    assert adapter.is_file()
    selected = loaded.trials.loc[loaded.trials["selected"], "trial_id"].item()
    tested = loaded.summary[loaded.summary["split"] == "test"]
    assert set(tested["trial_id"]) == {selected}
    assert set(tested["control"]) == {"baseline", "placebo", "sham"}
    assert len(run.results.pairs(control="placebo")) > 0


def test_pairs_start_from_the_same_latents(finished: tuple[Path, SweepRun, Counter[str]]) -> None:
    images = finished[1].results.images
    pairs = images.groupby(["prompt_id", "seed"])["latent_hash"]
    assert (pairs.nunique() == 1).all(), "the same in every arm"
    assert images["latent_hash"].nunique() == len(pairs), "no two prompts share a noise"


def test_a_second_run_does_nothing(finished: tuple[Path, SweepRun, Counter[str]], plan: Plan) -> None:
    root, first, _ = finished

    class Refusing:
        def workers(self, ctx: Context) -> int:
            return 1

        def carry_out(self, queue: Queue, ctx: Context) -> None:
            raise AssertionError(f"asked to run {queue.next()}")

    ctx = Context.of(plan, root, Made())
    again = run_sweep(plan, ctx, Refusing(), announce=lambda *_: None, publish=lambda _: True)
    assert again.outcomes == []
    pd.testing.assert_frame_equal(again.results.summary, first.results.summary)


def test_what_a_task_should_have_made_and_did_not_is_a_failure(plan: Plan, tmp_path: Path) -> None:
    class Idle:
        def workers(self, ctx: Context) -> int:
            return 1

        def carry_out(self, queue: Queue, ctx: Context) -> None:
            while (task := queue.next()) is not None:
                queue.done(Outcome(task=task))

    ctx = Context.of(plan, tmp_path / "w", Made())
    run = run_sweep(plan, ctx, Idle(), announce=lambda *_: None, publish=lambda _: True)
    assert list(run.results.trials["status"]) == ["failed", "failed"]
    assert set(run.results.trials["reason"]) == {UNMADE}
    assert marked(plan, Workspace(tmp_path / "w")) is None, "it is no finished sweep"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"axes": {"training.steps": [2, 4, 6]}}, {"training_steps": 2 + 2, "images": 4 + 4}),
        ({"axes": {"training.steps": [2, 4], "adapter.rank": [2, 3]}}, {"training_steps": 8}),
        ({"seeds": [0, 1, 2]}, {"images": 2 * 3 + 4 * 2 + 2}),
    ],
    ids=["more steps", "another rank", "another seed"],
)
def test_an_extended_sweep_makes_what_is_missing(
    changes: dict[str, Any],
    expected: dict[str, int],
    finished: tuple[Path, SweepRun, Counter[str]],
    tmp_path: Path,
    tiny_config: SdxlModel,
    tiny_clip: str,
) -> None:
    extended = small_plan(tmp_path, tiny_config, tiny_clip, name="extended", **changes)
    run, made = carry_out(extended, finished[0])
    assert not [outcome for outcome in run.outcomes if outcome.failed]
    assert made["dataset_images"] == 0
    for kind, count in expected.items():
        if kind == "images":  # another trial may be selected, so that its test images are drawn as well
            assert count <= made[kind] <= count + 6
        else:
            assert made[kind] == count


def test_a_new_metric_scores_the_old_images(
    finished: tuple[Path, SweepRun, Counter[str]], tmp_path: Path, tiny_config: SdxlModel, tiny_clip: str
) -> None:
    """Two of a kind under names of their own; one that differs from an old one in name alone."""
    metrics = [
        {"kind": "clip_score", "name": "tiny", "encoder": tiny_clip},
        {"kind": "clip_score", "name": "again", "encoder": tiny_clip},
        {"kind": "clip_score", "encoder": "emoji"},
        "contrast",
    ]
    analysis = {"primary": "tiny", "control": "placebo"}
    plan = small_plan(tmp_path, tiny_config, tiny_clip, name="metric", metrics=metrics, analysis=analysis)
    run, made = carry_out(plan, finished[0])
    assert made["images"] == made["training_steps"] == 0
    wide = run.results.wide()
    assert list(wide.columns[-4:]) == ["tiny", "again", "clip_score", "contrast"]
    assert wide.iloc[:, -4:].notna().all().all()
    assert (wide["tiny"] == wide["again"]).all() and (wide["tiny"] != wide["clip_score"]).all()
    before = finished[1].results.wide().set_index("image_id")["clip_score"]
    assert (wide.set_index("image_id")["tiny"].reindex(before.index).dropna() == before).all()


def test_drift_and_diversity_come_from_the_same_embeddings(
    finished: tuple[Path, SweepRun, Counter[str]], tmp_path: Path, tiny_config: SdxlModel, tiny_clip: str
) -> None:
    metrics = [
        {"kind": "clip_score", "encoder": tiny_clip},
        {"kind": "drift", "encoder": tiny_clip},
        {"kind": "drift", "name": "from_sham", "encoder": tiny_clip, "control": "sham"},
        {"kind": "diversity", "encoder": tiny_clip},
        {"kind": "diversity", "name": "by_lite0", "encoder": "efficientnet_lite0"},
    ]
    run, made = carry_out(
        small_plan(tmp_path, tiny_config, tiny_clip, name="moved", metrics=metrics), finished[0]
    )
    assert not made["images"]
    assert len(list((finished[0] / "scores").glob("embedding-*"))) == 2
    wide = run.results.wide()
    placebo, sham = (wide[wide["arm"] == arm] for arm in ("placebo", "sham"))
    assert (placebo["drift"] == 0).all() and (sham["from_sham"] == 0).all()
    assert (wide.loc[wide["arm"] == "wrong_lora", ["drift", "from_sham"]] > 0).all().all()
    assert (wide[["diversity", "by_lite0"]] > 0).all().all()
    rows = run.results.summary.query("metric == 'drift' and control == 'placebo' and arm == 'wrong_lora'")
    assert rows["higher_is_better"].isna().all()
    assert (rows["mean_difference"] == rows["mean_arm"]).all() and (rows["mean_control"] == 0).all()


def test_weights_that_cannot_be_fetched_stop_a_sweep_before_it_trains(
    tmp_path: Path, tiny_config: SdxlModel, tiny_clip: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    metrics = [
        {"kind": "clip_score", "encoder": tiny_clip},
        {"kind": "clip_score", "name": "second", "encoder": "ViT-H-14/laion2b_s32b_b79k"},
    ]
    made = Made()
    plan = small_plan(tmp_path, tiny_config, tiny_clip, metrics=metrics)
    ctx = Context.of(plan, tmp_path / "w", made)
    with pytest.raises(ModelError, match="'ViT-H-14/laion2b_s32b_b79k': its weights are not here") as error:
        run_sweep(plan, ctx, LocalExecutor(), announce=lambda *_: None, publish=lambda _: True)
    assert "\n" not in str(error.value) and len(str(error.value)) < 300
    assert not made.counts


def test_the_same_sweep_gives_the_same_images_and_scores(
    finished: tuple[Path, SweepRun, Counter[str]], plan: Plan, tmp_path: Path
) -> None:
    again, _ = carry_out(plan, tmp_path)
    columns = ["image_id", "latent_hash"]
    pd.testing.assert_frame_equal(again.results.images[columns], finished[1].results.images[columns])
    # Packs and batches may be cut in another way, which rounds in another way.
    pd.testing.assert_frame_equal(again.results.scores, finished[1].results.scores, rtol=0.1, atol=0.1)


def test_a_failed_run_is_a_row_and_loses_no_other(
    tmp_path: Path, tiny_config: SdxlModel, tiny_clip: str
) -> None:
    axes = {"training.learning_rate": [0.01, 1e30]}
    plan = small_plan(tmp_path, tiny_config, tiny_clip, axes=axes, training={"steps": 4, "batch_size": 2})
    run, _ = carry_out(plan, tmp_path / "w")
    good, bad = run.results.trials.sort_values("training.learning_rate").to_dict("records")
    assert good["status"] == "completed"
    assert bad["status"] == "failed"
    assert "learning rate" in bad["reason"]
    lost = run.results.summary[run.results.summary["trial_id"] == bad["trial_id"]]
    assert lost["mean_difference"].isna().all()
    assert lost["reason"].notna().all()


def test_a_trial_that_failed_half_drawn_has_no_numbers_and_is_not_selected(
    finished: tuple[Path, SweepRun, Counter[str]], plan: Plan, tmp_path: Path
) -> None:
    """As where its time was over: the images that it has must not stand for it."""
    root = tmp_path / "w"
    shutil.copytree(finished[0], root)
    trials = finished[1].results.trials
    best = trials[trials["selected"]].iloc[0]["trial_id"]
    trial = next(trial for trial in plan.trials if trial.trial_id == best)
    arm_id, workspace = trial.arms["wrong_lora"], Workspace(root)
    workspace.image_chunks(arm_id)[0].remove()
    found = collect(plan, workspace, {arm_id: "it took too long"}, Events(workspace, plan.sweep.name))
    row = found.trials.set_index("trial_id").loc[best]
    assert (row["status"], row["reason"], row["selected"]) == ("failed", "it took too long", False)
    own = found.images.loc[found.images["trial_id"] == best, "image_id"]
    scores = found.scores[found.scores["image_id"].isin(own)]
    assert len(scores) and scores["value"].isna().all()
    assert set(scores["reason"]) == {"its arm failed: it took too long"}
    summary = found.summary[found.summary["trial_id"] == best]
    assert summary["mean_difference"].isna().all() and summary["reason"].str.contains("too long").all()
    others = found.scores[~found.scores["image_id"].isin(own)]
    assert others["value"].notna().all() and found.trials["selected"].sum() == 1


def test_one_trial_runs_alone(plan: Plan, tmp_path: Path) -> None:
    ctx = Context.of(plan, tmp_path, Made())
    got = run_trial(plan, ctx, plan.trials[1], announce=lambda _: None)
    assert list(got.trials["status"]) == ["missing", "completed"]
    assert got.trials["reason"][0] == "not run yet"


def test_arms_may_have_several_adapters(tmp_path: Path, tiny_config: SdxlModel, tiny_clip: str) -> None:
    """The trial's own, its average, another recipe's with settings of its own, a file, and merges of them."""
    subject = {
        "recipe": PLAIN,
        "adapter": {"kind": "lora", "rank": 2},
        "training": {"prompt": "a cat", "steps": 2, "learning_rate": 0.01, "batch_size": 2},
    }
    own = {"scale": 1.0, "branch": "both"}
    changes: dict[str, Any] = {
        "training": {"learning_rate": 0.01, "batch_size": 2, "steps": 3, "ema": 0.5, "holdout": 1},
        "axes": {},
        "arms": [
            {"name": "placebo", "negative": "wrong"},
            {"name": "subject", "negative": "wrong", "adapters": [{**subject, "branch": "positive"}]},
            {"name": "wrong_lora", "negative": "wrong", "adapters": [own]},
            {"name": "average", "negative": "wrong", "adapters": [{**own, "weights": "ema"}]},
            {
                "name": "two",
                "negative": "wrong",
                "adapters": [{**subject, "branch": "positive"}, {"branch": "negative"}],
            },
            {
                "name": "merged",
                "negative": "wrong",
                "adapters": [{**subject, "branch": "both"}, own],
                "merge": {"method": "linear"},
            },
        ],
    }
    first = carry_out(small_plan(tmp_path, tiny_config, tiny_clip, **changes), tmp_path / "w")[0].results
    drawn = first.images[first.images["split"] == "dev"].groupby("arm")["sha256"].agg(tuple)
    assert len(set(drawn)) == len(drawn) == 6, "every arm draws images of its own"
    assert set(first.summary["arm"]) == {"wrong_lora", "average", "two", "merged"}
    assert set(first.summary["control"]) == {"placebo", "subject"}
    assert first.trials["validation_loss"].notna().all()

    file = tmp_path / "w" / first.trials["adapter_path"][0] / "pytorch_lora_weights.safetensors"
    arms = [
        {"name": "placebo", "negative": "wrong"},
        {"name": "from_file", "negative": "wrong", "adapters": [{**own, "file": str(file)}]},
        {"name": "wrong_lora", "negative": "wrong", "adapters": [own]},
    ]
    plan = small_plan(tmp_path, tiny_config, tiny_clip, **{**changes, "arms": arms})
    again = carry_out(plan, tmp_path / "w")[0].results
    scores = again.wide().pivot_table(index=["prompt_id", "seed"], columns="arm", values="clip_score")
    pd.testing.assert_series_equal(scores["from_file"], scores["wrong_lora"], check_names=False)
