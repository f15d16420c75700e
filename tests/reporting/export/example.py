"""A finished sweep on disk, written by the tables' own writer: drawn with one colour, trained at random."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml
from PIL import Image, PngImagePlugin

from harness import results
from harness.config.loading.load import load_sweep
from harness.config.plan.plan import Cell, Plan, Trial, expand
from harness.config.schema.adapter import LowRankAdapter, OftAdapter, ProductAdapter, TextualInversion
from harness.diffusion.adapters.files import save_adapter
from harness.engine.collect import described
from harness.results import tables
from harness.results.summary import select_best, summarise
from harness.results.sweep_results import Results
from harness.store.workspace import Workspace

SWEEP: dict[str, Any] = {
    "name": "small",
    "question": "Does anything change?",
    "model": {"kind": "emoji"},
    "recipe": {"kind": "keywords", "keywords": ["blurry", "ugly"], "guidance": [3, 4]},
    "adapter": {"rank": 4, "alpha": 2},
    "training": {"learning_rate": 0.001, "steps": 4},
    "axes": {"training.steps": [2, 4]},
    "arms": [
        {"name": "baseline"},
        {"name": "placebo", "negative": "wrong"},
        {"name": "wrong_lora", "negative": "wrong", "adapters": [{"scale": 1.5}]},
    ],
    "prompts": [
        *({"text": f"{animal} on grass", "split": "dev"} for animal in ("a cat", "a dog", "a fox")),
        *({"text": f"{fruit} at night", "split": "test"} for fruit in ("a pear", "a lemon", "a banana")),
    ],
    "seeds": [0, 1],
    "metrics": [{"kind": "clip_score", "encoder": "emoji"}, "saturation"],
    "analysis": {"primary": "clip_score", "resamples": 200},
}
COLOURS = {
    "baseline": (120, 120, 120),
    "blurred": (110, 110, 110),
    "placebo": (40, 90, 200),
    "wrong_lora": (220, 60, 40),
}
MODULES = {  # some that emoji's UNet and text encoders have: name, inputs, outputs
    "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q": (112, 112),
    "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k": (224, 112),
    "unet.up_blocks.1.attentions.1.transformer_blocks.0.attn1.to_out.0": (112, 112),
    "text_encoder.text_model.encoder.layers.0.self_attn.out_proj": (96, 96),
    "text_encoder_2.text_model.encoder.layers.0.self_attn.out_proj": (128, 128),
}


def finished(root: Path, *, gain: float = 1.0, lost: tuple[int, ...] = (), **changes: Any) -> Results:
    """Write a sweep into the workspace `root`; `changes` replace its top-level keys.

    `gain` is how much the selected (last) trial's arm scores above placebo on test; `lost` are trials that
    failed.
    """
    file = root / "small.yaml"
    root.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump({**SWEEP, **changes}, sort_keys=False))
    plan, workspace = expand(load_sweep(file)), Workspace(root)
    kept = [trial for trial in plan.trials if trial.index not in lost]
    for trial in kept:
        _train(workspace, trial)
    images, scores = _images(plan, workspace, kept, gain)
    arms = pd.DataFrame(
        [
            {
                "trial_id": t.trial_id,
                "arm": arm.name,
                "arm_id": t.arms[arm.name],
                "is_control": arm.is_control,
                "guidance": plan.arms[t.arms[arm.name]].guidance,
                "reason": None,
            }
            for t in plan.trials
            for arm in plan.sweep.arms
            if arm.name in t.arms
        ]
    )
    trials = pd.DataFrame([_trial(workspace, plan, trial, trial in kept) for trial in plan.trials])
    sweep = plan.sweep
    summary = summarise(trials, arms, images, scores, analysis=sweep.analysis, metrics=sweep.metrics)
    trials["selected"] = trials["trial_id"] == select_best(summary, sweep.analysis)
    about = {**described(sweep, reasons={}, events=[], seconds=254.0), "host": "secret-host"}
    folder = workspace.sweep(sweep.name)
    tables.write(folder, trials=trials, arms=arms, images=images, scores=scores, summary=summary, sweep=about)
    return results.load(folder)


def _train(workspace: Workspace, trial: Trial) -> None:
    generator = torch.Generator().manual_seed(trial.index)
    adapter = trial.config.trained.adapter
    state: dict[str, torch.Tensor] = {}
    match adapter:
        case LowRankAdapter(rank=rank):
            for name, (inputs, outputs) in MODULES.items():
                state[f"{name}.lora_A.weight"] = torch.randn(rank, inputs, generator=generator)
                state[f"{name}.lora_B.weight"] = torch.randn(outputs, rank, generator=generator) * 0.02
                if adapter.kind == "dora":
                    # as PEFT names them: in the UNet by diffusers' hand, in the encoders by transformers'
                    end = "" if name.startswith("unet") else ".weight"
                    state[f"{name}.lora_magnitude_vector{end}"] = torch.rand(outputs, generator=generator) + 1
        case ProductAdapter(rank=rank):
            for name, (inputs, outputs) in MODULES.items():
                if name.startswith("unet."):
                    for n in "12":
                        state[f"{name}.hada_w{n}_a"] = torch.randn(outputs, rank, generator=generator)
                        state[f"{name}.hada_w{n}_b"] = torch.randn(rank, inputs, generator=generator) * 0.1
        case OftAdapter(block_size=size):
            for name, (inputs, _) in MODULES.items():
                if name.startswith("unet."):
                    shape = (inputs // size, size * (size - 1) // 2)
                    state[f"{name}.oft_R.weight"] = torch.randn(*shape, generator=generator) * 0.2
        case TextualInversion(vectors=vectors):
            for name, width in (("clip_l", 96), ("clip_g", 128)):
                state[name] = torch.randn(vectors, width, generator=generator)
                state[f"{name}_start"] = torch.zeros(vectors, width)
    artifact = workspace.checkpoint(str(trial.run_id), trial.config.trained.training.steps)
    with artifact.build() as folder:
        save_adapter(state, adapter, folder, {"trained_in": str(workspace.root)})
        if trial.config.trained.training.ema is not None:
            halved = {key: tensor / 2 for key, tensor in state.items()}
            save_adapter(halved, adapter, folder / "ema", {})


def _trial(workspace: Workspace, plan: Plan, trial: Trial, done: bool) -> dict[str, Any]:
    checkpoint = workspace.checkpoint(str(trial.run_id), trial.config.trained.training.steps)
    row = {
        **dict.fromkeys(tables.TRIALS.names),
        "trial_id": trial.trial_id,
        "index": trial.index,
        "status": "completed" if done else "failed",
        "reason": None if done else "its loss became NaN",
        "run_id": trial.run_id,
        "dataset_id": plan.runs[str(trial.run_id)].dataset.dataset_id,
        "config": json.dumps(trial.config.model_dump(mode="json")),
        "adapter_path": workspace.relative(checkpoint.path) if done else None,
        "selected": False,
    }
    return {**row, **trial.params}


def _images(
    plan: Plan, workspace: Workspace, trials: list[Trial], gain: float
) -> tuple[pd.DataFrame, pd.DataFrame]:
    owner = {trial.arms["wrong_lora"]: trial for trial in trials}
    images, scores = [], []
    for arm in plan.arms.values():
        if arm.adapters and arm.arm_id not in owner:
            continue
        trial = owner.get(arm.arm_id)
        selected = trial is trials[-1]
        tested = plan.cells(arm, "test") if trial is None or selected else ()
        for place, cell in enumerate([*plan.cells(arm, "dev"), *tested]):
            path = _generate(workspace, arm.arm, cell)
            owned_by = None if trial is None else trial.trial_id
            images.append(_image(workspace, arm.arm, owned_by, cell, path, steps=arm.steps))
            bonus = (gain if cell.split == "test" else 1 if selected else 0.5) * (1 + 0.3 * (place % 3))
            for metric, value in (("clip_score", 60 + place + (bonus if trial else 0)), ("saturation", 0.5)):
                scores.append(_score(cell, metric, value))
    return (
        tables.typed(pd.DataFrame(images), tables.IMAGES),
        tables.typed(pd.DataFrame(scores), tables.SCORES),
    )


def _generate(workspace: Workspace, arm: str, cell: Cell) -> Path:
    chunk, name = workspace.images(cell.arm_id, cell.image_id[:8]), f"{cell.image_id}.png"
    told = PngImagePlugin.PngInfo()
    told.add_text("harness", json.dumps({"adapter": str(workspace.root)}))
    with chunk.build() as folder:
        pixels = np.full((64, 64, 3), COLOURS[arm], dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name, pnginfo=told)
    return chunk.path / name


def _image(
    workspace: Workspace, arm: str, trial: str | None, cell: Cell, path: Path, *, steps: int
) -> dict[str, Any]:
    return {
        **dict.fromkeys(tables.IMAGES.names),
        "image_id": cell.image_id,
        "arm_id": cell.arm_id,
        "arm": arm,
        "trial_id": trial,
        "prompt_id": cell.prompt_id,
        "prompt": cell.prompt,
        "tags": [],
        "split": cell.split,
        "seed": cell.seed,
        "negative": "",
        "guidance": 5.0,
        "steps": steps,
        "latent_hash": f"latents-{cell.noise_seed}",
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "path": workspace.relative(path),
        "width": 64,
        "height": 64,
        "generation_seconds": 0.1,
    }


def _score(cell: Cell, metric: str, value: float) -> dict[str, Any]:
    return {
        **dict.fromkeys(tables.SCORES.names),
        "image_id": cell.image_id,
        "metric": metric,
        "value": value,
        "metric_version": "1",
    }
