"""An adapter's files for other tools: diffusers' layout, kohya's for A1111 and ComfyUI, and their headers.

A header tells what readers of these tools look for: kohya's `ss_…` (https://github.com/kohya-ss/sd-scripts,
docs/train_network.md), Stability AI's `modelspec.…` 1.0.1, and the harness's own, its whole configuration.
"""

import hashlib
import json
import re
from pathlib import Path
from typing import Any, Literal

from safetensors import safe_open
from safetensors.torch import load_file, save

from harness.config.schema.adapter import LowRankAdapter, OftAdapter, ProductAdapter, TextualInversion
from harness.config.schema.model import EmojiModel
from harness.config.weights.layout import EMBEDDING_FILE, LORA_FILE, METADATA_KEY, PEFT_CONFIG, PEFT_FILE
from harness.diffusion.adapters.adapter import EMA
from harness.diffusion.adapters.files import with_sorted_metadata
from harness.diffusion.adapters.kohya import to_kohya
from harness.errors import ExportError
from harness.reporting.export.subject import Subject, portable

FILES = {  # by the kind of adapter; others are LoRA
    **dict.fromkeys(("loha", "lokr", "oft"), PEFT_FILE),
    "textual_inversion": EMBEDDING_FILE,
}
Layout = Literal["diffusers", "kohya", "both"]
SDXL = "sdxl_base_v1-0"  # A1111 takes what begins with sdxl_ for SDXL
SAI = "https://github.com/Stability-AI/generative-models"
UP = ".lora_B."  # what a scale is multiplied into
OWN = "harness."  # before the names of our own entries
DIFFUSERS = (METADATA_KEY, "format", "word", "vectors")  # entries that readers know by these names


def write_files(subject: Subject, folder: Path, layout: Layout) -> list[Path]:
    """The trial's adapter, and its average where it has one, in each layout. Returns what was written."""
    adapter, written = subject.trained.adapter, list[Path]()
    name = FILES.get(adapter.kind, LORA_FILE)
    if layout == "kohya" and isinstance(adapter, OftAdapter):
        raise ExportError(
            "an OFT of PEFT turns a layer's inputs, those of kohya and LyCORIS its outputs, so it has no "
            "file for them; give --layout diffusers"
        )
    for variant in ("", EMA):
        source = subject.checkpoint / variant / name
        if variant and not source.is_file():
            continue
        label = f"{subject.name}_{variant}" if variant else subject.name
        if layout in ("diffusers", "both"):
            written.append(_copy(source, folder / variant / name, subject, label))
            if name == PEFT_FILE:
                settings = folder / variant / PEFT_CONFIG
                settings.write_bytes((source.parent / PEFT_CONFIG).read_bytes())
                written.append(settings)
        if layout in ("kohya", "both") and not isinstance(adapter, OftAdapter):
            target = folder / f"{label}.safetensors"
            write = _embedding if isinstance(adapter, TextualInversion) else _kohya
            written.append(write(source, target, subject, label))
    return written


def _copy(source: Path, target: Path, subject: Subject, label: str) -> Path:
    """The harness's file, its header made fit for others, and its scale in its numbers.

    So it acts alike for readers of tensors alone, as diffusers before it read alphas from the header.
    """
    with safe_open(source, framework="pt") as file:
        header: dict[str, str] = file.metadata() or {}
    own = {key: value for key, value in header.items() if key in DIFFUSERS}
    state, adapter = load_file(source), subject.trained.adapter
    if isinstance(adapter, LowRankAdapter):
        state = {key: tensor * adapter.scale if UP in key else tensor for key, tensor in state.items()}
        own[METADATA_KEY] = _at_scale_one(own[METADATA_KEY], adapter.rank)
    return _write(target, state, {**describe(subject, label), **own})


def _at_scale_one(text: str, rank: int) -> str:
    """PEFT's configuration with alpha the rank, and no rsLoRA, whose alpha is divided by its root."""
    config = {key: value for key, value in json.loads(text).items() if not key.endswith(".use_rslora")}
    return json.dumps(
        {k: rank if k.endswith(".lora_alpha") else v for k, v in config.items()}, sort_keys=True
    )


def _kohya(source: Path, target: Path, subject: Subject, label: str) -> Path:
    adapter, state = subject.trained.adapter, load_file(source)
    assert isinstance(adapter, LowRankAdapter | ProductAdapter)
    alpha = adapter.scale * adapter.rank
    if isinstance(adapter, ProductAdapter):  # into the numbers: of two whole factors no reader knows the rank
        first = re.compile(r"\.(hada_w1_a|lokr_w1|lokr_w1_a)$")
        scaled = {key: t * adapter.scale if first.search(key) else t for key, t in state.items()}
        state = {key.replace("base_model.model.", "unet."): t for key, t in scaled.items()}
        alpha = adapter.rank
    state = to_kohya(state, alpha=alpha, blocks=subject.blocks)
    return _write(target, state, {**describe(subject, label), "format": "pt"})


def _embedding(source: Path, target: Path, subject: Subject, label: str) -> Path:
    """Only what A1111 and ComfyUI know: the learnt vectors of both encoders."""
    state = {key: tensor for key, tensor in load_file(source).items() if key in ("clip_l", "clip_g")}
    return _write(target, state, {**describe(subject, label), "format": "pt"})


def _write(target: Path, state: dict[str, Any], header: dict[str, str]) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    numbers = _numbers(save(state))
    digest = hashlib.sha256(numbers).hexdigest()
    hashes = {"sshs_model_hash": digest, "modelspec.hash_sha256": f"0x{digest}"}
    target.write_bytes(with_sorted_metadata(save(state, {**header, **hashes})))
    return target


def _numbers(data: bytes) -> bytes:
    """A safetensors file without its header, which kohya's hash is of."""
    return data[8 + int.from_bytes(data[:8], "little") :]


def describe(subject: Subject, label: str) -> dict[str, str]:
    """The header's entries: kohya's, modelspec's and the harness's own. Nothing in them is a path."""
    own = {
        "trial": portable(subject.config.model_dump(mode="json")),
        "sweep": subject.results.sweep["name"],
        "trial_id": subject.trial_id,
        "versions": subject.results.sweep["versions"],
    }
    return {
        **{key: _entry(value) for key, value in _kohya_entries(subject, label).items() if value is not None},
        **{
            f"modelspec.{key}": _entry(value)
            for key, value in _modelspec(subject, label).items()
            if value is not None
        },
        **{f"{OWN}{key}": _entry(value) for key, value in own.items()},
    }


def _kohya_entries(subject: Subject, label: str) -> dict[str, Any]:
    (recipe, adapter, training), model = subject.trained, subject.config.model
    entries: dict[str, Any] = {
        "ss_output_name": label,
        "ss_base_model_version": "emoji" if isinstance(model, EmojiModel) else SDXL,
        "ss_sd_model_name": subject.base_text,
        "ss_v2": "False",
        "ss_mixed_precision": model.precision,
        "ss_resolution": _resolution(subject),
        "ss_learning_rate": training.learning_rate,
        "ss_unet_lr": training.learning_rate,
        "ss_optimizer": training.optimizer.kind,
        "ss_lr_scheduler": training.schedule.kind,
        "ss_lr_warmup_steps": training.schedule.warmup_steps,
        "ss_max_train_steps": training.steps,
        "ss_steps": training.steps,
        "ss_batch_size_per_device": training.batch_size,
        "ss_gradient_accumulation_steps": training.gradient_accumulation,
        "ss_max_grad_norm": training.max_grad_norm,
        "ss_min_snr_gamma": training.min_snr_gamma,
        "ss_noise_offset": training.noise_offset or None,
        "ss_caption_dropout_rate": training.caption_dropout,
        "ss_num_train_images": recipe.count,
        # A1111 and ComfyUI's tools show the words of this table as what calls the adapter.
        "ss_tag_frequency": {subject.recipe_text: {subject.word: recipe.count or 1}},
        "ss_seed": training.seed,
    }
    if isinstance(adapter, ProductAdapter):
        entries["ss_network_module"] = "lycoris.kohya"
        entries["ss_network_dim"] = entries["ss_network_alpha"] = adapter.rank  # the scale is in the numbers
        entries["ss_network_args"] = {"algo": adapter.kind, "targets": ",".join(adapter.targets)}
    if isinstance(adapter, LowRankAdapter):
        entries["ss_network_module"] = "networks.lora"
        entries["ss_network_dim"] = adapter.rank
        entries["ss_network_alpha"] = adapter.scale * adapter.rank  # kohya divides it by the rank
        entries["ss_network_dropout"] = adapter.dropout or None
        entries["ss_network_args"] = {"algo": adapter.kind, "targets": ",".join(adapter.targets)}
        if adapter.text_encoders:
            entries["ss_text_encoder_lr"] = training.text_encoder_learning_rate or training.learning_rate
    return entries


def _modelspec(subject: Subject, label: str) -> dict[str, Any]:
    is_word = isinstance(subject.config.adapter, TextualInversion)
    model, times = subject.config.model, subject.trained.training.timesteps
    is_emoji = isinstance(model, EmojiModel)
    prediction = None if isinstance(model, EmojiModel) else model.prediction_type
    return {
        "sai_model_spec": "1.0.1",
        "architecture": ("emoji" if is_emoji else "stable-diffusion-xl-v1-base")
        + ("/textual-inversion" if is_word else "/lora"),
        "implementation": SAI if subject.blocks == "sgm" else "diffusers",
        "title": label,
        "resolution": _resolution(subject),
        "date": subject.results.sweep["finished_at"],
        "description": f"{subject.results.sweep['question']} Trial {subject.index} of the sweep.",
        "trigger_phrase": subject.word,
        "usage_hint": f"negative prompt: {subject.word}",
        "prediction_type": {"epsilon": "epsilon", "v_prediction": "v", None: None}[prediction],
        "timestep_range": f"{times.lowest},{times.highest + 1}",
        "is_negative_embedding": "true" if is_word else None,
    }


def _resolution(subject: Subject) -> str | None:
    """The model's own size, which it was trained at; None if its images were generated at another."""
    images = subject.results.images
    if subject.results.sweep["sampler"]["size"] is not None or images.empty:
        return None
    return f"{images['width'].iloc[0]}x{images['height'].iloc[0]}"


def _entry(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)
