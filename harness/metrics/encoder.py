"""The one door to open_clip: images and words to unit embeddings.

Shape legend: B rows, T tokens, D embedding width.
"""

import hashlib
import io
import pickle
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import open_clip
import timm
import torch
from PIL.Image import Resampling
from safetensors import SafetensorError

from harness.errors import ModelError
from harness.metrics.fine_tuned import FINE_TUNED, FineTuned, read_weights
from harness.metrics.weights import LITE0, LITE0_SHA256, encoder_folder, lite0_file

if TYPE_CHECKING:
    from PIL.Image import Image


# What open_clip, transformers and safetensors raise for files that are missing, cut or do not fit together.
_BAD_FOLDER = (
    *(OSError, ValueError, KeyError, TypeError, RuntimeError, EOFError),
    *(SafetensorError, pickle.UnpicklingError),
)


class Encoder:
    """A CLIP, loaded once, in fp32 and evaluation mode.

    `name` is `emoji`, `local-dir:PATH`, `architecture/pretrained`, or, for a metric that is a CLIP itself,
    `pick_score:PATH` and `hps_v2:PATH`. Preprocessing is open_clip's for evaluation: on PIL images, hence
    with antialiasing, and without chance.
    """

    def __init__(self, name: str, *, device: str) -> None:
        self.name = name
        self._device = torch.device(device)
        kind, _, path = name.partition(":")
        source = (name, None) if kind in FINE_TUNED else resolve(name)
        try:
            if kind in FINE_TUNED:
                model, self._preprocess, self._tokenizer = _fine_tuned(FINE_TUNED[kind], Path(path))
            else:
                model, self._preprocess = open_clip.create_model_from_pretrained(*source, precision="fp32")
                self._tokenizer = open_clip.get_tokenizer(source[0])
        except _BAD_FOLDER as error:
            raise ModelError(f"encoder {name!r} cannot be loaded: {_first_line(error)}") from error
        self._model = model.to(self._device).eval().requires_grad_(False)
        self.logit_scale = float(model.logit_scale.exp())
        self._pad = int(self._tokenizer([""])[0].mode().values)
        self._prompts: dict[str, tuple[torch.Tensor, bool]] = {}
        self.weights_hash = hash_tensors(model.state_dict().items())
        # On a CPU rows gain nothing from company, and one at a time their last bits cannot depend on it.
        self._rows_at_once = 1 if self._device.type == "cpu" else 32

    @torch.inference_mode()
    def embed_images(self, images: Sequence["Image"]) -> torch.Tensor:
        """Unit embeddings [B, D] of RGB images of any size, fp32, on the CPU."""
        parts = [
            self._encode_images(torch.stack([self._preprocess(image) for image in part]))
            for part in _slices(images, self._rows_at_once)
        ]
        return torch.cat(parts)

    @torch.inference_mode()
    def embed_prompts(self, prompts: Sequence[str]) -> tuple[torch.Tensor, list[bool]]:
        """Unit embeddings [B, D] of prompts, and whether each was cut to the encoder's context."""
        for prompt in dict.fromkeys(prompts):
            if prompt not in self._prompts:  # a sweep has few prompts and many images
                tokens_1T = self._tokenizer([prompt])
                embedding_1D = self._model.encode_text(tokens_1T.to(self._device), normalize=True)
                self._prompts[prompt] = (embedding_1D.float().cpu(), self._is_cut(prompt, tokens_1T))
        found = [self._prompts[prompt] for prompt in prompts]
        return torch.cat([embedding for embedding, _ in found]), [cut for _, cut in found]

    @property
    def width(self) -> int:
        """D, the width of the embedding that images and prompts share."""
        return self.embed_prompts([""])[0].shape[1]

    def _encode_images(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        # TF32 would cost digits that an adapter's effect needs; cuDNN's convolutions have it on by default.
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            return self._model.encode_image(pixels_BCHW.to(self._device), normalize=True).float().cpu()

    def _is_cut(self, prompt: str, tokens_1T: torch.Tensor) -> bool:
        """Whether one more place in the context would have held one more token of the prompt."""
        longer = self._tokenizer([prompt], context_length=tokens_1T.shape[1] + 1)
        return bool((longer != self._pad).sum() > (tokens_1T != self._pad).sum())


class ImageNetEncoder:
    """EfficientNet-Lite0, trained on ImageNet's photographs and classes, and on no text: the pooled features.

    Input as in its training, (level − 127) / 128 at 224 × 224; the whole image, squeezed to a square.
    """

    def __init__(self, *, device: str) -> None:
        file = lite0_file()
        content = file.read_bytes()
        if hashlib.sha256(content).hexdigest() != LITE0_SHA256:
            raise ModelError(
                f"encoder {LITE0!r}: {file} is not the published file; install its package again"
            )
        model = timm.create_model(LITE0)
        theirs = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        # The same layers in the same order under the names of an older code.
        state = dict(zip(model.state_dict(), theirs.values(), strict=True))
        model.load_state_dict(state)
        model.reset_classifier(0)
        self._device = torch.device(device)
        self._model = model.to(self._device).eval().requires_grad_(False)
        self.weights_hash = hash_tensors(model.state_dict().items())

    @torch.inference_mode()
    def embed_images(self, images: Sequence["Image"]) -> torch.Tensor:
        """Unit embeddings [B, 1280] of RGB images of any size, fp32, on the CPU."""
        return torch.cat([self._embed(image) for image in images])

    def _embed(self, image: "Image") -> torch.Tensor:
        """One at a time: rows gain nothing from company here, and their last bits cannot depend on it."""
        square = np.asarray(image.resize((224, 224), Resampling.BICUBIC), dtype=np.float32)
        pixels_1CHW = torch.from_numpy((square - 127) / 128).permute(2, 0, 1)[None]
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            features_1D = self._model(pixels_1CHW.to(self._device))
        return torch.nn.functional.normalize(features_1D, dim=1).float().cpu()


def resolve(name: str) -> tuple[str, str | None]:
    """What open_clip calls an encoder: its model name and pretrained tag.

    Refuses weights trained with QuickGELU on an architecture without it: open_clip 3 only warns there, and
    embeds wrongly (`ViT-L-14/openai`; open_clip issue 771).
    """
    folder = encoder_folder(name)
    if folder is not None:
        return f"local-dir:{folder}", None
    architecture, _, pretrained = name.partition("/")
    config = open_clip.get_model_config(architecture)
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    tag = open_clip.get_pretrained_cfg(architecture, pretrained)
    if not tag:
        raise ModelError(
            f"encoder {name!r}: {architecture} has no weights {pretrained!r}; allowed: {', '.join(tags)}"
        )
    if tag.get("quick_gelu", False) and not config.get("quick_gelu", False):
        right = f"{architecture}-quickgelu"
        advice = f"use {right}/{pretrained}" if right in open_clip.list_models() else "use other weights"
        raise ModelError(
            f"encoder {name!r}: weights trained with QuickGELU would embed wrongly here; {advice}"
        )
    return architecture, pretrained


def known_words() -> frozenset[str]:
    """Words that CLIP's vocabulary has whole, in small letters; about 33,000."""
    whole = (token.removesuffix("</w>") for token in open_clip.SimpleTokenizer().encoder if "</w>" in token)
    return frozenset(word for word in whole if word.isalpha())


def fetch(name: str) -> None:
    """Have weights and tokenizer of an open_clip name on this machine. Raises ModelError where that fails."""
    architecture, pretrained = resolve(name)
    tag = open_clip.get_pretrained_cfg(architecture, str(pretrained))
    try:
        open_clip.download_pretrained(tag)
        open_clip.get_tokenizer(architecture)
    except _BAD_FOLDER as error:
        raise ModelError(
            f"encoder {name!r}: its weights are not here and cannot be fetched; run once where the network "
            f"is, or give local-dir:PATH ({_first_line(error)[:120]})"
        ) from error


def _fine_tuned(about: FineTuned, path: Path) -> tuple[Any, Any, Any]:
    """Model, preprocessing and tokenizer of a preference model."""
    weights = read_weights(path)
    model = open_clip.CLIP(**open_clip.get_model_config(about.architecture))
    expected = model.state_dict()
    wrong = [
        name
        for name in sorted(expected.keys() | weights.keys())
        if name not in weights or name not in expected or weights[name].shape != expected[name].shape
    ]
    if wrong:
        raise ValueError(f"{path.name} is no {about.architecture}: {len(wrong)} tensors, such as {wrong[0]}")
    model.load_state_dict(weights)
    preprocess = open_clip.image_transform(
        model.visual.image_size, is_train=False, resize_mode=about.resize, interpolation="bicubic"
    )
    return model, preprocess, open_clip.get_tokenizer(about.architecture)


def hash_tensors(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    """First 16 hex digits of a sha256 over names, shapes and bytes, in order of name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors, key=lambda item: item[0]):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _slices(images: Sequence["Image"], size: int) -> Iterable[Sequence["Image"]]:
    return (images[start : start + size] for start in range(0, len(images), size))


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
