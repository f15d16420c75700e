"""How an exported adapter is used: in diffusers, A1111 and ComfyUI, on both branches or on one alone."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from harness.config.schema.adapter import (
    AdapterConfig,
    LowRankAdapter,
    OftAdapter,
    ProductAdapter,
    TextualInversion,
)
from harness.config.schema.evaluation import negative_text
from harness.config.schema.model import CHECKPOINT, EmojiModel
from harness.config.weights.layout import EMBEDDING_FILE, LORA_FILE, PEFT_FILE
from harness.diffusion.adapters.adapter import EMA
from harness.reporting.export.evidence import Evidence
from harness.reporting.export.subject import Subject
from harness.results.contrast import is_own
from harness.results.format import code

DORA = (
    "**A DoRA in kohya's layout:** its magnitudes are `dora_scale`, one per output, as LyCORIS's "
    "`wd_on_output` has it. Readers differ: diffusers leaves them out, ComfyUI takes the norm of the base's "
    "weights alone, and older A1111 normalises over inputs. Only diffusers' file is what was measured."
)
OFT = (
    "**An OFT of PEFT** turns the inputs of layers, those of kohya's scripts and of LyCORIS their outputs: "
    "PEFT alone loads it, at scale 1, and A1111 and ComfyUI do not."
)
PROMPT = "a red fox"


def usage_text(subject: Subject, evidence: Evidence, files: Mapping[str, str]) -> str:
    """The section's paragraphs."""
    return "\n\n".join(_paragraphs(subject, evidence, files))


def _paragraphs(subject: Subject, evidence: Evidence, files: Mapping[str, str]) -> Iterator[str]:
    adapter = subject.trained.adapter
    arm: dict[str, Any] = next(a for a in subject.results.sweep["arms"] if a["name"] == evidence.arm)
    own = next(a for a in arm["adapters"] if is_own(a))
    prompt = evidence.pairs[0].prompt if evidence.pairs else PROMPT
    negative = negative_text(arm["negative"], prompt) or subject.word
    averaged = own["weights"] == EMA
    name = f"{subject.name}_{EMA}" if averaged else subject.name
    if LORA_FILE in files or EMBEDDING_FILE in files or PEFT_FILE in files:
        yield _diffusers(subject, prompt=prompt, negative=negative, scale=own["scale"], averaged=averaged)
    if f"{name}.safetensors" in files and not isinstance(subject.config.model, EmojiModel):
        yield _web_uis(adapter, name=name, negative=negative, scale=own["scale"])
    if isinstance(adapter, OftAdapter):
        yield OFT
    if not isinstance(adapter, TextualInversion):
        if isinstance(adapter, OftAdapter) and own["branch"] != "both":
            yield f"The images above were generated with it on the {own['branch']} guidance branch alone."
        elif own["branch"] != "both":
            guidance = arm["guidance"] or subject.results.sweep["sampler"]["guidance"]
            file = f"{name}.safetensors"
            yield _one_branch(own["branch"], file if file in files else LORA_FILE)
            if LORA_FILE in files and isinstance(adapter, LowRankAdapter) and not adapter.text_encoders:
                yield _guider(own["branch"], prompt=prompt, negative=negative, guidance=guidance)
        if adapter.kind == "dora" and f"{name}.safetensors" in files:
            yield DORA


def _one_branch(branch: str, file: str) -> str:
    """Inputs of ComfyUI's node as of core 0.24."""
    loaded, plain = ("model_negative", "model") if branch == "negative" else ("model", "model_negative")
    return (
        f"**On one branch alone.** The images above were generated with the adapter on the {branch} guidance "
        "branch. The lines above, A1111 and ComfyUI's *KSampler* let it act on both. ComfyUI "
        f"has a node for it, *DualModelGuider*: `{loaded}` from *Load LoRA* with `{file}`, "
        f"`{plain}` from the checkpoint itself, and the {branch} prompt encoded by *Load LoRA*'s CLIP."
    )


def _guider(branch: str, *, prompt: str, negative: str, guidance: float) -> str:
    """Lines for diffusers' modular pipelines, after those that load the LoRA into `pipe`."""
    on, off = ("enable", "disable") if branch == "positive" else ("disable", "enable")
    lines = [
        "from diffusers import ClassifierFreeGuidance",
        "from diffusers.modular_pipelines import StableDiffusionXLAutoBlocks",
        "",
        "class OneBranch(ClassifierFreeGuidance):",
        "    def prepare_models(self, denoiser):",
        "        super().prepare_models(denoiser)  # for the prompt first, then for the negative prompt",
        f"        denoiser.{on}_lora() if self.is_conditional else denoiser.{off}_lora()",
        "",
        "modular = StableDiffusionXLAutoBlocks().init_pipeline()",
        "parts = {key: pipe.components.get(key) for key in modular.components}",
        "parts = {key: part for key, part in parts.items() if part is not None}",
        f"modular.update_components(**parts, guider=OneBranch(guidance_scale={guidance:g}))",
        f"image = modular(prompt={json.dumps(prompt)}, negative_prompt={json.dumps(negative)}, "
        'output="images")[0]',
    ]
    return "In diffusers, after these lines, a guider:\n\n```python\n" + "\n".join(lines) + "\n```"


def _diffusers(subject: Subject, *, prompt: str, negative: str, scale: float, averaged: bool) -> str:
    adapter = subject.trained.adapter
    if isinstance(adapter, TextualInversion):
        # diffusers takes no token that its vocabulary has, so the word goes by another name there.
        negative = negative.replace(adapter.word, f"<{adapter.word}>")
        imports, load = (
            ["from safetensors.torch import load_file"],
            _load_embedding(adapter, averaged=averaged),
        )
    elif not isinstance(adapter, LowRankAdapter):
        imports, load = ["from peft import PeftModel"], _load_peft(adapter, scale=scale, averaged=averaged)
    else:
        where = f'subfolder="{EMA}", ' if averaged else ""
        imports, load = [], [f'pipe.load_lora_weights(".", {where}weight_name="{LORA_FILE}")']
        load += [f"pipe.set_adapters(pipe.get_active_adapters(), {scale:g})"] if scale != 1 else []
    if isinstance(subject.config.model, EmojiModel):
        imports = ["from importlib.resources import files", *imports]
        pipe = (
            'StableDiffusionXLPipeline.from_pretrained(files("harness.diffusion.models") / "emoji" / "base")'
        )
    else:
        imports = ["import torch", *imports]
        in_a_file = subject.config.model.source.endswith(CHECKPOINT)
        base = json.dumps(subject.base or f"path/to/the/base{CHECKPOINT if in_a_file else ''}")
        method = "from_single_file" if in_a_file else "from_pretrained"
        pipe = f'StableDiffusionXLPipeline.{method}({base}, torch_dtype=torch.float16).to("cuda")'
    lines = [
        *imports,
        "from diffusers import StableDiffusionXLPipeline",
        "",
        f"pipe = {pipe}",
        *load,
        f"image = pipe({json.dumps(prompt)}, negative_prompt={json.dumps(negative)}).images[0]",
    ]
    return "diffusers, from this folder:\n\n```python\n" + "\n".join(lines) + "\n```"


def _load_peft(adapter: ProductAdapter | OftAdapter, *, scale: float, averaged: bool) -> list[str]:
    load = [f'unet = PeftModel.from_pretrained(pipe.unet, "{EMA if averaged else "."}")']
    if scale != 1 and isinstance(adapter, ProductAdapter):
        load += ["for layer in unet.modules():", '    if hasattr(layer, "set_scale"):']
        load += [f'        layer.set_scale("default", {scale:g})']
    return [*load, "pipe.unet = unet.merge_and_unload()"]


def _load_embedding(adapter: TextualInversion, *, averaged: bool) -> list[str]:
    file = f"{EMA}/{EMBEDDING_FILE}" if averaged else EMBEDDING_FILE
    return [
        f'learnt = load_file("{file}")',
        *(
            f'pipe.load_textual_inversion(learnt["{key}"], token="<{adapter.word}>", '
            f"tokenizer=pipe.tokenizer{number}, text_encoder=pipe.text_encoder{number})"
            for key, number in (("clip_l", ""), ("clip_g", "_2"))
        ),
    ]


def _web_uis(adapter: AdapterConfig, *, name: str, negative: str, scale: float) -> str:
    if isinstance(adapter, TextualInversion):
        return (
            f"A1111: put `{name}.safetensors` into `embeddings/` and write `{name}` in the negative prompt. "
            f"ComfyUI: `models/embeddings/`, and `embedding:{name}`."
        )
    return (
        f"A1111: put `{name}.safetensors` into `models/Lora/`, write `<lora:{name}:{scale:g}>` in the prompt "
        f"and {code(negative)} in the negative prompt. ComfyUI: `models/loras/`, a *Load LoRA* node with "
        f"strength {scale:g}, and {code(negative)} as the negative prompt."
    )
