"""How an exported adapter is used in diffusers, A1111 and ComfyUI, and what differs from the sweep there."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from harness.export.evidence import Evidence, is_own
from harness.export.subject import Subject
from harness.models.adapter_file import EMBEDDING_FILE, LORA_FILE
from harness.models.spec import EmojiModel
from harness.spec.adapter import LowRankAdapter, TextualInversion
from harness.stage import EMA

DORA = (
    "**A DoRA in kohya's layout:** its magnitudes are `dora_scale`, one per output, as LyCORIS's "
    "`wd_on_output` has it. Readers differ: diffusers leaves them out, ComfyUI takes the norm of the base's "
    "weights alone, and older A1111 normalises over inputs. Only diffusers' file is what was measured."
)
PROMPT = "a red fox"


def text(subject: Subject, evidence: Evidence, files: Mapping[str, str]) -> str:
    """The section's paragraphs."""
    return "\n\n".join(_paragraphs(subject, evidence, files))


def _paragraphs(subject: Subject, evidence: Evidence, files: Mapping[str, str]) -> Iterator[str]:
    adapter = subject.spec.adapter
    arm: dict[str, Any] = next(a for a in subject.results.sweep["arms"] if a["name"] == evidence.arm)
    own = next(a for a in arm["adapters"] if is_own(a))
    negative = arm["negative"] or subject.word
    prompt = evidence.pairs[0].prompt if evidence.pairs else PROMPT
    averaged = own["weights"] == EMA
    name = f"{subject.name}_{EMA}" if averaged else subject.name
    if LORA_FILE in files or EMBEDDING_FILE in files:
        yield _diffusers(subject, prompt=prompt, negative=negative, scale=own["scale"], averaged=averaged)
    if f"{name}.safetensors" in files and not isinstance(subject.spec.model, EmojiModel):
        yield _web_uis(adapter, name=name, negative=negative, scale=own["scale"])
    if isinstance(adapter, LowRankAdapter):
        if own["branch"] != "both":
            yield (
                f"**One difference.** The pictures above were drawn with the adapter on the {own['branch']} "
                "guidance branch alone. Stock pipelines and web UIs let a LoRA act on both, so theirs are "
                "others; lora-sweep-harness draws the measured ones (`harness run`)."
            )
        if adapter.kind == "dora" and f"{name}.safetensors" in files:
            yield DORA


def _diffusers(subject: Subject, *, prompt: str, negative: str, scale: float, averaged: bool) -> str:
    adapter = subject.spec.adapter
    if isinstance(adapter, TextualInversion):
        # diffusers takes no token that its vocabulary has, so the word goes by another name there.
        negative = negative.replace(adapter.word, f"<{adapter.word}>")
        imports, load = (
            ["from safetensors.torch import load_file"],
            _load_embedding(adapter, averaged=averaged),
        )
    else:
        where = f'subfolder="{EMA}", ' if averaged else ""
        imports, load = [], [f'pipe.load_lora_weights(".", {where}weight_name="{LORA_FILE}")']
        load += [f"pipe.set_adapters(pipe.get_active_adapters(), {scale:g})"] if scale != 1 else []
    if isinstance(subject.spec.model, EmojiModel):
        imports = ["from importlib.resources import files", *imports]
        pipe = 'StableDiffusionXLPipeline.from_pretrained(files("harness.models") / "emoji" / "base")'
    else:
        imports = ["import torch", *imports]
        base = json.dumps(subject.base or "path/to/the/base")
        pipe = f'StableDiffusionXLPipeline.from_pretrained({base}, torch_dtype=torch.float16).to("cuda")'
    lines = [
        *imports,
        "from diffusers import StableDiffusionXLPipeline",
        "",
        f"pipe = {pipe}",
        *load,
        f"picture = pipe({json.dumps(prompt)}, negative_prompt={json.dumps(negative)}).images[0]",
    ]
    return "diffusers, from this folder:\n\n```python\n" + "\n".join(lines) + "\n```"


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


def _web_uis(adapter: LowRankAdapter | TextualInversion, *, name: str, negative: str, scale: float) -> str:
    if isinstance(adapter, TextualInversion):
        return (
            f"A1111: put `{name}.safetensors` into `embeddings/` and write `{name}` in the negative prompt. "
            f"ComfyUI: `models/embeddings/`, and `embedding:{name}`."
        )
    return (
        f"A1111: put `{name}.safetensors` into `models/Lora/`, write `<lora:{name}:{scale:g}>` in the prompt "
        f"and `{negative}` in the negative prompt. ComfyUI: `models/loras/`, a *Load LoRA* node with "
        f"strength {scale:g}, and `{negative}` as the negative prompt."
    )
