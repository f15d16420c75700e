from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.config.plan.plan import Plan, ResolvedArm, expand, noise_seed
from harness.config.schema.adapter import AdapterConfig, LowRankAdapter
from tests.config.example import load


def plan(folder: Path, *overrides: str, **changes: Any) -> Plan:
    return expand(load(folder, *overrides, **changes))


def draws_of(plan: Plan, name: str) -> list[ResolvedArm]:
    return [arm for arm in plan.arms.values() if arm.arm == name]


def rank_of(adapter: AdapterConfig) -> int:
    assert isinstance(adapter, LowRankAdapter)
    return adapter.rank


def test_trials_are_the_product_the_last_axis_fastest(tmp_path: Path) -> None:
    trials = plan(tmp_path).trials
    assert [(t.params["adapter.rank"], t.params["training.steps"]) for t in trials] == [
        (2, 100),
        (2, 200),
        (8, 100),
        (8, 200),
    ]
    assert [t.index for t in trials] == [0, 1, 2, 3]
    assert [rank_of(t.config.trained.adapter) for t in trials] == [2, 2, 8, 8]
    assert len({t.trial_id for t in trials}) == 4


def test_no_axes_is_one_trial(tmp_path: Path) -> None:
    assert len(plan(tmp_path, axes={}).trials) == 1


def test_trials_that_differ_in_steps_share_a_run(tmp_path: Path) -> None:
    found = plan(tmp_path)
    own = {trial.run_id for trial in found.trials}
    assert len(own) == 2
    assert len(found.runs) == 4  # and one sham run for each rank
    assert {run.checkpoints for run in found.runs.values()} == {(100, 200)}
    assert {run.training.steps for run in found.runs.values()} == {200}


def test_run_keeps_its_id_when_steps_are_added(tmp_path: Path) -> None:
    before = plan(tmp_path)
    after = plan(tmp_path, "axes.training.steps=[400, 100]")
    assert set(after.runs) == set(before.runs)
    assert {run.checkpoints for run in after.runs.values()} == {(100, 400)}


def test_new_rank_adds_runs_and_keeps_the_others(tmp_path: Path) -> None:
    before, after = plan(tmp_path), plan(tmp_path, "axes.adapter.rank=[2, 8, 16]")
    assert set(before.runs) < set(after.runs)
    assert set(before.arms) < set(after.arms)
    assert {rank_of(after.runs[run].adapter) for run in set(after.runs) - set(before.runs)} == {16}


def test_controls_without_adapters_are_drawn_once(tmp_path: Path) -> None:
    found = plan(tmp_path)
    assert [arm.arm for arm in found.control_arms] == ["baseline", "placebo"]
    assert len({trial.arms["placebo"] for trial in found.trials}) == 1


def test_sham_is_drawn_once_per_matching_rank_and_steps(tmp_path: Path) -> None:
    recipes = [
        {"kind": "keywords", "keywords": ["ugly"]},
        {"kind": "degrade", "prompts": ["a cat"], "degradations": ["blur"]},
    ]
    found = plan(tmp_path, recipe=None, axes__recipe=recipes)
    assert len(found.trials) == 8
    assert len(draws_of(found, "sham")) == 4
    assert len(draws_of(found, "wrong_lora")) == 8
    for trial in found.trials:
        (adapter,) = found.arms[trial.arms["sham"]].adapters
        assert adapter.run_id is not None
        run = found.runs[adapter.run_id]
        assert (run.adapter, adapter.steps) == (trial.config.adapter, trial.config.trained.training.steps)
        assert run.dataset.recipe.kind == "plain"
    assert len(found.datasets) == 3  # the sham's images are made once


def test_trials_draw_uses_its_own_checkpoint(tmp_path: Path) -> None:
    found = plan(tmp_path)
    for trial in found.trials:
        (adapter,) = found.arms[trial.arms["wrong_lora"]].adapters
        assert (adapter.run_id, adapter.steps) == (trial.run_id, trial.config.trained.training.steps)
        assert (adapter.scale, adapter.branch) == (1.0, "negative")


def test_arms_that_draw_alike_share_their_images(tmp_path: Path) -> None:
    arms = [{"name": "a"}, {"name": "b", "guidance": 5}, {"name": "lora", "adapters": [{}]}]
    found = plan(tmp_path, arms=arms, analysis={"control": "a"}, sampler={"guidance": 5.0})
    assert found.trials[0].arms["a"] == found.trials[0].arms["b"]


@pytest.mark.parametrize(
    "override",
    [
        "sampler.steps=7",
        "sampler.guidance=3",
        "sampler.refiner_start=null",
        "training.seed=5",
        "model.vae=null",
    ],
)
def test_what_changes_a_image_changes_its_id(tmp_path: Path, override: str) -> None:
    ids = [
        {cell.image_id for arm in draws_of(found, "wrong_lora") for cell in found.cells(arm, "dev")}
        for found in (plan(tmp_path), plan(tmp_path, override))
    ]
    assert not ids[0] & ids[1]


@pytest.mark.parametrize(
    "override", ["compute.batch_size=3", "tracking.kind=wandb", "model.variant=null", "name=b"]
)
def test_how_changes_no_id(tmp_path: Path, override: str) -> None:
    before, after = plan(tmp_path), plan(tmp_path, override)
    assert [t.trial_id for t in before.trials] == [t.trial_id for t in after.trials]
    assert set(before.arms) == set(after.arms)
    assert set(before.runs) == set(after.runs)


def test_pairs_are_the_same_cells_in_every_arm(tmp_path: Path) -> None:
    found = plan(tmp_path)
    pairs = {
        arm.arm_id: [(cell.prompt_id, cell.seed) for cell in found.cells(arm, "dev")]
        for arm in found.arms.values()
    }
    assert len({tuple(keys) for keys in pairs.values()}) == 1
    images = [c.image_id for arm in found.arms.values() for c in found.cells(arm, "dev")]
    assert len(set(images)) == len(images) == 2 * len(found.arms)


def test_splits_do_not_overlap(tmp_path: Path) -> None:
    found = plan(tmp_path)
    arm = found.control_arms[0]
    dev, test = ({cell.prompt for cell in found.cells(arm, split)} for split in ("dev", "test"))
    assert (dev, test) == ({"a fox"}, {"an owl"})


def test_draws_of_a_run_come_in_order_of_steps(tmp_path: Path) -> None:
    found = plan(tmp_path, "axes.training.steps=[200, 100]")
    for run_id in found.runs:
        assert [arm.adapters[0].steps for arm in found.arms_of_run(run_id)] == [100, 200]


def test_whole_sections_are_labelled_for_people(tmp_path: Path) -> None:
    recipes = [
        {"kind": "keywords", "keywords": ["ugly"], "name": "short list"},
        {"kind": "plain", "prompts": ["a"]},
    ]
    found = plan(tmp_path, recipe=None, axes={"recipe": recipes})
    assert [trial.params for trial in found.trials] == [{"recipe": "short list"}, {"recipe": "plain"}]


def test_no_two_prompts_share_a_noise_and_all_arms_have_the_same(tmp_path: Path) -> None:
    by_pair: dict[tuple[str, int], set[int]] = {}
    found = plan(tmp_path)
    for arm in found.arms.values():
        for split in ("dev", "test"):
            for cell in found.cells(arm, split):
                by_pair.setdefault((cell.prompt_id, cell.seed), set()).add(cell.noise_seed)
    assert all(len(noises) == 1 for noises in by_pair.values())
    assert len({noise for noises in by_pair.values() for noise in noises}) == len(by_pair)


def test_a_noise_depends_on_its_own_prompt_and_seed_alone() -> None:
    assert noise_seed("a red fox", 0) == noise_seed("a red fox", 0)
    assert len({noise_seed(prompt, seed) for prompt in ("a red fox", "a blue cup") for seed in (0, 1)}) == 4


def test_shared_noise_is_the_seed(tmp_path: Path) -> None:
    arm = replace(next(iter(plan(tmp_path).arms.values())), noise="shared")
    assert all(cell.noise_seed == cell.seed for cell in plan(tmp_path).cells(arm, "dev"))
