"""A finished sweep on disk, as the pipeline leaves it, without a model: drawn faces, simulated scores."""

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image, ImageDraw, ImageFilter

from harness import results as harness_results
from harness.config.plan.axes import param_label
from harness.config.plan.plan import Cell, Plan, ResolvedArm, Trial, expand
from harness.config.schema.adapter import LowRankAdapter
from harness.config.schema.sweep import SweepConfig
from harness.diffusion.training.checkpoint import Checkpoint
from harness.engine.collect import described
from harness.results import Results, tables
from harness.results.summary import select_best, summarise
from harness.store.workspace import Workspace

SUBJECTS = (
    "a fox", "a hamburger", "a red car", "a tulip", "an owl", "a guitar", "a robot", "an apple", "a whale",
    "a rocket", "a cactus", "a violin", "a penguin", "a pizza", "a sailboat", "a lighthouse", "a mushroom",
    "a bicycle", "a teapot", "a dragon", "a snail", "a camera", "a balloon", "a crab",
)  # fmt: skip
METRICS = ("clip_score", "aesthetic", "saturation", "contrast")
NOISE = {"clip_score": 0.9, "aesthetic": 0.35, "saturation": 0.03, "contrast": 0.02}
LEVEL = {"clip_score": 27.0, "aesthetic": 5.2, "saturation": 0.45, "contrast": 0.22}


def config(
    *,
    name: str = "example",
    ranks: tuple[int, ...] = (4, 16),
    steps: tuple[int, ...] = (100, 200),
    n_prompts: int = 24,
    test_share: float = 0.5,
    seeds: tuple[int, ...] = (0, 1),
    axes: dict[str, Any] | None = None,
    arms: Sequence[dict[str, Any]] = (),
) -> SweepConfig:
    """Two recipes × ranks × steps, four arms and `arms`; half of the prompts are held out."""
    keywords = {"kind": "keywords", "name": "keywords", "keywords": ["blurry", "noisy"], "guidance": [8, 9]}
    damaged = {"kind": "degrade", "name": "damaged", "prompts": ["a cat"], "degradations": ["blur"]}
    n_test = round(n_prompts * test_share)
    return SweepConfig.model_validate(
        {
            "name": name,
            "question": "Does a LoRA of bad images, as the negative prompt, draw better images?",
            "model": {"kind": "emoji", "digest": "5f1d" * 16},
            "recipe": keywords,
            "axes": {"recipe": [keywords, damaged], "adapter.rank": ranks, "training.steps": steps}
            if axes is None
            else axes,
            "arms": [
                {"name": "baseline"},
                {"name": "placebo", "negative": "wrong"},
                {"name": "sham", "negative": "wrong", "adapters": [{"sham": {}}]},
                {"name": "wrong_lora", "negative": "wrong", "adapters": [{}]},
                *arms,
            ],
            "prompts": [
                {"text": f"{subject} on a beach", "split": "test" if i >= n_prompts - n_test else "dev"}
                for i, subject in enumerate(SUBJECTS[:n_prompts])
            ],
            "seeds": seeds,
            "metrics": [
                {"kind": "clip_score", "encoder": "emoji"},
                {"kind": "aesthetic", "encoder": "emoji", "head": "emoji"},
                {"kind": "saturation"},
                {"kind": "contrast"},
            ],
            "analysis": {"resamples": 400},
        }
    )


def family(name: str, key: str, values: Sequence[float], **arm: Any) -> list[dict[str, Any]]:
    """Arms that differ in `guidance` or in their first adapter's scale, as a sweep's reader makes them."""
    points = []
    for value in values:
        point = {"name": f"{name}-{key}-{value}", "family": name, "params": {key: value}, **arm}
        if key == "scale":
            first, *others = point["adapters"]
            points.append({**point, "adapters": [{**first, "scale": value}, *others]})
        else:
            points.append({**point, key: value})
    return points


def build(
    workspace: Path,
    sweep: SweepConfig | None = None,
    *,
    gain: float = 0.3,
    sham: float = 0.0,
    guard: float = 0.0,
    failed: tuple[int, ...] = (2,),
) -> Results:
    """Write checkpoints, images, tables and sweep.json; give them as a user reads them.

    `gain` is the true effect of the best trial on `aesthetic`, `sham` that of the sham adapter, `guard` the
    share of an effect that shows as saturation too; `failed` are indices of trials that trained badly.
    """
    sweep = sweep or config()
    plan = expand(sweep)
    maker = _Maker(workspace, plan, gain=gain, sham=sham, guard=guard)
    broken = {trial.trial_id for trial in plan.trials if trial.index in failed}
    for trial in plan.trials:
        for arm_id in trial.arms.values():
            if trial.trial_id not in broken or not _own(plan, trial, plan.arms[arm_id]):
                maker.draw(plan.arms[arm_id], split="dev")
        if trial.trial_id not in broken:
            _train(Workspace(workspace), trial)
    arms = _arms(plan)
    trials = _trials(plan, broken)
    images, scores = maker.tables()
    summary = summarise(trials, arms, images, scores, analysis=sweep.analysis, metrics=sweep.metrics)
    best = select_best(summary, sweep.analysis)
    trials["selected"] = trials["trial_id"] == best
    for arm_id in arms.loc[arms["trial_id"] == best, "arm_id"]:
        maker.draw(plan.arms[arm_id], split="test")
    images, scores = maker.tables()
    summary = summarise(trials, arms, images, scores, analysis=sweep.analysis, metrics=sweep.metrics)
    folder = workspace / "sweeps" / sweep.name
    about = described(sweep, reasons={}, events=[], seconds=254.0)
    tables.write(folder, trials=trials, arms=arms, images=images, scores=scores, summary=summary, sweep=about)
    return harness_results.load(folder)


def outline(sweep: SweepConfig) -> Results:
    """The same sweep before anything was drawn: trials and draws, no images, no numbers."""
    plan = expand(sweep)
    return Results(
        trials=_trials(plan, set()),
        arms=_arms(plan),
        images=tables.empty("images"),
        scores=tables.empty("scores"),
        summary=tables.empty("summary"),
        sweep=described(sweep, reasons={}, events=[], seconds=0.0),
    )


def _own(plan: Plan, trial: Trial, draw: ResolvedArm) -> bool:
    return any(adapter.run_id == trial.run_id for adapter in draw.adapters)


def _trials(plan: Plan, broken: set[str]) -> pd.DataFrame:
    rows = []
    for trial in plan.trials:
        failed = trial.trial_id in broken
        params = {axis: param_label(value) for axis, value in trial.params.items()}
        rows.append(
            {
                "trial_id": trial.trial_id,
                "index": trial.index,
                "status": "failed" if failed else "completed",
                "reason": "loss became NaN at step 61; lower training.learning_rate" if failed else None,
                "run_id": trial.run_id,
                "dataset_id": plan.runs[str(trial.run_id)].dataset.dataset_id,
                **params,
                "config": trial.config.model_dump_json(),
                "adapter_path": None
                if failed
                else f"adapters/{trial.run_id}/steps-{trial.config.trained.training.steps:06d}",
                "final_loss": None if failed else 0.08,
                "validation_loss": None,
                "train_seconds": None if failed else 31.0,
                "selected": False,
            }
        )
    return pd.DataFrame(rows)


def _train(workspace: Workspace, trial: Trial) -> None:
    """The checkpoint that the trial's adapter is, with falling losses."""
    steps = trial.config.trained.training.steps
    checkpoint = workspace.checkpoint(str(trial.run_id), steps)
    if checkpoint.done:
        return
    state = Checkpoint(
        run_id=str(trial.run_id),
        step=steps,
        adapter={"unet.to_q.lora_A.weight": torch.zeros(1, 2)},
        optimizer={"0000.step": torch.tensor(float(steps))},
        losses=[0.2 * math.exp(-step / 80) + 0.08 for step in range(steps)],
        ema={},
        validation=None,
    )
    with checkpoint.build(step=steps, from_step=0, train_seconds=31.0) as folder:
        state.write(folder)


def _arms(plan: Plan) -> pd.DataFrame:
    arms = {arm.name: arm for arm in plan.sweep.arms}
    rows = [
        {
            "trial_id": trial.trial_id,
            "arm": arm,
            "arm_id": arm_id,
            "is_control": arms[arm].is_control,
            "guidance": plan.arms[arm_id].guidance,
            "reason": None,
        }
        for trial in plan.trials
        for arm, arm_id in trial.arms.items()
    ]
    return pd.DataFrame(rows)


class _Maker:
    """Draws images and simulates scores, each draw and split once."""

    def __init__(self, workspace: Path, plan: Plan, *, gain: float, sham: float, guard: float) -> None:
        self.workspace, self.plan, self.gain, self.sham, self.guard = workspace, plan, gain, sham, guard
        self.owners = {t.arms[a.name]: t for t in plan.trials for a in plan.sweep.arms if not a.is_control}
        self.done: set[tuple[str, str]] = set()
        self.images: list[dict[str, Any]] = []
        self.scores: list[dict[str, Any]] = []

    def tables(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        return pd.DataFrame(self.images), pd.DataFrame(self.scores)

    def effect(self, draw: ResolvedArm) -> float:
        """The true gain of a draw on `aesthetic`: larger with steps and scale, largest at rank 4 … 8."""
        if draw.arm == "sham":
            return self.sham
        owner = self.owners.get(draw.arm_id)
        if owner is None:
            return 0.0
        config, trained = owner.config, owner.config.trained
        assert isinstance(config.adapter, LowRankAdapter)
        scale = next(adapter.scale for adapter in draw.adapters if adapter.run_id == owner.run_id)
        dose = min(trained.training.steps / 200, 1.3) * scale
        return (
            self.gain
            * dose
            * (1.0 if trained.recipe.kind == "degrade" else 0.4)
            * 8
            / (4 + config.adapter.rank)
        )

    def draw(self, draw: ResolvedArm, *, split: str) -> None:
        if (draw.arm_id, split) in self.done:
            return
        self.done.add((draw.arm_id, split))
        folder = Path("images") / draw.arm_id / split
        (self.workspace / folder).mkdir(parents=True, exist_ok=True)
        owner = self.owners.get(draw.arm_id)
        for cell in self.plan.cells(draw, split):
            path = folder / f"{cell.image_id}.png"
            image(cell.prompt, cell.seed, blur=max(0.0, 1.6 - 2 * self.effect(draw))).save(
                self.workspace / path
            )
            self.images.append(
                {
                    "image_id": cell.image_id, "arm_id": draw.arm_id, "arm": draw.arm,
                    "trial_id": owner.trial_id if owner else None, "prompt_id": cell.prompt_id,
                    "prompt": cell.prompt, "tags": list(cell.tags), "split": split, "seed": cell.seed,
                    "negative": draw.negative, "guidance": draw.guidance, "steps": draw.steps,
                    "effective_guidance": draw.guidance - len(draw.adapters) / 4 if split == "dev" else None,
                    "orthogonal_share": len(draw.adapters) / 8 if split == "dev" else None,
                    "refiner_start": draw.refiner_start, "latent_hash": _digest("latent", cell.noise_seed),
                    "sha256": _digest(cell.image_id), "path": path.as_posix(), "width": 64, "height": 64,
                    "generation_seconds": 0.4,
                }
            )  # fmt: skip
            self.score(draw, cell)

    def score(self, draw: ResolvedArm, cell: Cell) -> None:
        """Noise hangs on places and texts: fingerprints change with the specification's fields."""
        place = list(self.plan.arms).index(draw.arm_id)
        image_id, lot = cell.image_id, (place, cell.prompt, cell.seed)
        for metric in METRICS:
            shared = _rng(metric, cell.prompt, cell.seed).normal(0, 2 * NOISE[metric])
            own = _rng(metric, *lot).normal(0, NOISE[metric])
            moved = self.effect(draw) * {"aesthetic": 1.0, "saturation": self.guard}.get(metric, 0.0)
            value = LEVEL[metric] + shared + own + moved
            lost = metric == "aesthetic" and _digest(*lot).startswith("00")
            self.scores.append(
                {
                    "image_id": image_id,
                    "metric": metric,
                    "value": None if lost else value,
                    "reason": "the image could not be read" if lost else None,
                    "metric_version": "1",
                    "weights_hash": None if metric in ("saturation", "contrast") else "ab12" * 4,
                    "prompt_truncated": False if metric == "clip_score" else None,
                }
            )


def image(prompt: str, seed: int, *, blur: float) -> Image.Image:
    """A face on a coloured ground: the prompt decides its colours, the seed its place."""
    rng = _rng("image", prompt)
    ground, skin = (tuple(int(x) for x in rng.integers(90, 255, 3)) for _ in range(2))
    x, y = (int(v) for v in _rng("place", seed).integers(-8, 8, 2))
    opened = Image.new("RGB", (64, 64), ground)
    pen = ImageDraw.Draw(opened)
    pen.ellipse((14 + x, 14 + y, 50 + x, 50 + y), fill=skin, outline=(40, 40, 40))
    for eye in (24, 36):
        pen.ellipse((eye + x, 25 + y, eye + 4 + x, 30 + y), fill=(30, 30, 30))
    pen.arc((23 + x, 30 + y, 41 + x, 43 + y), 20, 160, fill=(30, 30, 30), width=2)
    return opened.filter(ImageFilter.GaussianBlur(blur))


def _digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _rng(*parts: object) -> np.random.Generator:
    return np.random.default_rng(int(_digest(*parts)[:12], 16))
