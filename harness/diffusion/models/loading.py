"""From a config to stock diffusers pipelines, with errors that say what to do."""

import tempfile
import textwrap
import warnings
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, StableDiffusionXLImg2ImgPipeline, StableDiffusionXLPipeline
from diffusers.utils import logging as diffusers_logging
from safetensors import SafetensorError
from transformers.utils import logging as transformers_logging

from harness.config.loading.tokens import EMOJI_FOLDER, local_file, local_folder
from harness.config.schema.model import EmojiModel, SdxlModel
from harness.config.weights.checkpoint import model_faults, read_checkpoint
from harness.diffusion.models import schedulers
from harness.diffusion.models.pipelines import DTYPES, Pipelines
from harness.errors import ModelError

UNREADABLE = (OSError, ValueError, KeyError, AttributeError, RuntimeError, SafetensorError)
SHARED = ("text_encoder_2", "tokenizer_2", "vae")  # what a refiner has from its base


def load_emoji(config: EmojiModel) -> Pipelines:
    """The embedded model, from the package's own data."""
    if not (EMOJI_FOLDER / "base").is_dir():
        raise ModelError(f"the embedded model is not in {EMOJI_FOLDER}; install the package with its data")
    dtype = DTYPES[config.precision]
    base = _pipeline(StableDiffusionXLPipeline, str(EMOJI_FOLDER / "base"), torch_dtype=dtype)
    refiner = _refiner(base, str(EMOJI_FOLDER / "refiner"), torch_dtype=dtype)
    return Pipelines(base=base, refiner=refiner)


def load_sdxl(config: SdxlModel) -> Pipelines:
    """SDXL from the hub or from local folders, or with random weights."""
    if config.source == "random":
        from harness.diffusion.models.random_weights import random_pipelines

        _be_quiet()
        return _predicting(random_pipelines(config), config)
    for fault in model_faults(config):
        raise ModelError(f"model.{fault}")
    options: dict[str, Any] = {"torch_dtype": DTYPES[config.precision]}
    parts = {}
    if config.vae is not None:
        parts["vae"] = _from_pretrained(
            AutoencoderKL, config.vae, config=config.config, revision=config.vae_revision, **options
        )
    options["variant"] = config.variant
    base = _pipeline(
        StableDiffusionXLPipeline,
        config.source,
        config=config.config,
        revision=config.revision,
        **options,
        **parts,
    )
    _as_marked(base, config)
    refiner = None
    if config.refiner is not None:
        refiner = _refiner(base, config.refiner, revision=config.refiner_revision, **options)
    return _predicting(Pipelines(base=base, refiner=refiner), config)


def _as_marked(base: StableDiffusionXLPipeline, config: SdxlModel) -> None:
    """The scheduler of a file that says what its UNet predicts, and from where the noise was trained."""
    file = local_file(config.source)
    if file is None:
        return
    checkpoint, changes = read_checkpoint(file), dict[str, Any]()
    prediction = config.prediction_type or checkpoint.prediction
    if prediction is not None:
        changes["prediction_type"] = prediction
    if checkpoint.zero_terminal_snr and prediction == "v_prediction":
        changes |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    base.scheduler = base.scheduler.from_config(base.scheduler.config, **changes)


def _predicting(pipelines: Pipelines, config: SdxlModel) -> Pipelines:
    """The specification's word on what the UNets predict stands above that of the schedulers."""
    if config.prediction_type is not None:
        for pipeline in (pipelines.base, pipelines.refiner):
            if pipeline is not None:
                own = pipeline.scheduler
                pipeline.scheduler = own.from_config(own.config, prediction_type=config.prediction_type)
    return pipelines


def _refiner(
    base: StableDiffusionXLPipeline, source: str, **options: Any
) -> StableDiffusionXLImg2ImgPipeline:
    shared = {name: getattr(base, name) for name in SHARED}
    refiner = _pipeline(StableDiffusionXLImg2ImgPipeline, source, **options, **shared)
    # The hand-over is at one noise level only if both walk the same schedule.
    refiner.scheduler = schedulers.make(base.scheduler, None)
    width, needed = base.text_encoder_2.config.hidden_size, refiner.unet.config.cross_attention_dim
    if width != needed:
        raise ModelError(
            f"refiner {source} expects text embeddings of width {needed}, and the second text encoder of the "
            f"base gives {width}; set model.refiner to a refiner of this base, or to null"
        )
    return refiner


def _pipeline(kind: type, source: str, **options: Any) -> Any:
    """A quiet pipeline, frozen."""
    _be_quiet()
    pipeline = _from_pretrained(kind, source, add_watermarker=False, **options)
    absent = [name for name in ("text_encoder", "tokenizer") if getattr(pipeline, name) is None]
    if kind is StableDiffusionXLPipeline:
        if absent:
            raise ModelError(
                f"{source} has no {' and no '.join(absent)}: it is a refiner; give it as model.refiner"
            )
        schedulers.own_name(pipeline.scheduler, source)
        _check_vae(pipeline.vae, source)
    pipeline.set_progress_bar_config(disable=True)
    for component in pipeline.components.values():
        if isinstance(component, torch.nn.Module):
            component.requires_grad_(False).eval()
    return pipeline


def _check_vae(vae: AutoencoderKL, source: str) -> None:
    if getattr(vae.config, "latents_mean", None) is not None:
        raise ModelError(
            f"the VAE of {source} shifts its latents by latents_mean, which the harness does not know; "
            "give a VAE without it as model.vae"
        )


def _from_file(kind: type, file: Path, config: str | None, **options: Any) -> Any:
    """From one file, by the configurations of a folder, which nothing is downloaded for."""
    for unused in ("revision", "variant"):
        options.pop(unused, None)
    if kind is AutoencoderKL:
        options["subfolder"] = "vae"
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if config is None:
            from harness.diffusion.models.random_weights import write_configuration

            write_configuration(Path(folder), refiner=kind is StableDiffusionXLImg2ImgPipeline)
        try:
            found = kind.from_single_file(  # type: ignore[attr-defined]
                str(file), config=config or folder, local_files_only=True, **options
            )
        except UNREADABLE as error:
            reason = textwrap.shorten(str(error), 120, placeholder=" …")
            if "meta tensor" in reason:  # what no number was found for
                reason = "tensors of the model are not in it"
            raise ModelError(
                f"{file} cannot be loaded by {config or 'the configuration of SDXL'}: {reason}"
            ) from error
    parts = [found] if kind is AutoencoderKL else found.components.values()
    lost = [
        n
        for part in parts
        if isinstance(part, torch.nn.Module)
        for n, p in part.named_parameters()
        if p.is_meta
    ]
    if lost:
        raise ModelError(
            f"{file} lacks {len(lost)} tensors of the model, {lost[0]} the first; give a whole file"
        )
    return found


def _from_pretrained(kind: type, source: str, *, config: str | None = None, **options: Any) -> Any:
    file = local_file(source)
    if file is not None:
        return _from_file(kind, file, config, **options)
    folder = local_folder(source)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return kind.from_pretrained(source if folder is None else folder, **options)  # type: ignore[attr-defined]
    except UNREADABLE as error:
        reason = textwrap.shorten(str(error), 300, placeholder=" …")
        if folder is None:
            advice = "check the id and its revision, and the network; or give a local folder"
        else:
            advice = f"the folder must be in diffusers' layout (model_index.json) for {kind.__name__}"
        if options.get("variant") is not None:
            advice += f", with weight files of variant {options['variant']!r} (or set model.variant: null)"
        raise ModelError(f"{source} cannot be loaded: {reason}. {advice[0].upper()}{advice[1:]}") from error


def _be_quiet() -> None:
    """Faults come as exceptions; what the libraries print beside them is noise in a progress display."""
    for log in (diffusers_logging, transformers_logging):
        log.set_verbosity_error()
        log.disable_progress_bar()
