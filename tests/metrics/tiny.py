"""A CLIP in open_clip's format with random weights, in a second: real files, loaded by the real code."""

import json
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import save_file
from transformers import CLIPTokenizer

WIDTH = 24
CONTEXT = 8  # start and end tokens, and 6 words
WORDS = ("red", "fox", "cup", "sky")
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


def tiny_clip(
    folder: Path,
    *,
    seed: int = 0,
    model_cfg: dict[str, Any] | None = None,
    text: dict[str, Any] | None = None,
) -> Path:
    """Write configuration, weights, and a tokenizer that knows four words and the letters."""
    tokenizer = _tokenizer()
    vision_cfg = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
    text_cfg = {"context_length": CONTEXT, "vocab_size": len(tokenizer), "width": 32, "heads": 2, "layers": 2}
    text_cfg = {**text_cfg, "eos_id": tokenizer.eos_token_id, **(text or {})}
    folder.mkdir(parents=True)
    tokenizer.save_pretrained(folder)
    config: dict[str, Any] = {"embed_dim": WIDTH, "vision_cfg": vision_cfg, "text_cfg": text_cfg}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        more = dict(model_cfg or {})
        build = open_clip.CustomTextCLIP if more.pop("custom_text", False) else open_clip.CLIP
        model = build(**config, **more)
        for parameter in model.parameters():  # not open_clip's start, under which all images look alike
            torch.nn.init.normal_(parameter, std=0.3)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    config |= {"text_cfg": {**text_cfg, "hf_tokenizer_name": "tiny"}, **(model_cfg or {})}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    return folder


def _tokenizer() -> CLIPTokenizer:
    tokens, merges = ["<pad>", *_LETTERS, *(f"{letter}</w>" for letter in _LETTERS)], []
    for word in WORDS:
        left, *rest = [*word[:-1], f"{word[-1]}</w>"]
        for part in rest:
            merges.append((left, part))
            left += part
            tokens.append(left)
    tokens += ["<|startoftext|>", "<|endoftext|>"]  # CLIP reads the text at its highest token
    return CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=merges, pad_token="<pad>")
