"""The one door to open_clip: images and words to unit embeddings.

Shape legend: B rows, T tokens, D embedding width.
"""

import hashlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import open_clip
import torch
from safetensors import SafetensorError

from harness.errors import ModelError
from harness.metrics.weights import encoder_folder

if TYPE_CHECKING:
    from PIL.Image import Image


# What open_clip, transformers and safetensors raise for files that are missing, cut or do not fit together.
_BAD_FOLDER = (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError)


class Encoder:
    """A CLIP, loaded once, in fp32 and evaluation mode.

    `name` is `emoji`, `local-dir:PATH` or `architecture/pretrained`. Preprocessing is open_clip's for
    evaluation: on PIL images, hence with antialiasing, and without chance.
    """

    def __init__(self, name: str, *, device: str) -> None:
        architecture, pretrained = resolve(name)
        self.name = name
        self._device = torch.device(device)
        try:
            model, self._preprocess = open_clip.create_model_from_pretrained(
                architecture, pretrained, precision="fp32", device=self._device
            )
            self._tokenizer = open_clip.get_tokenizer(architecture)
        except _BAD_FOLDER as error:
            raise ModelError(f"encoder {name!r} cannot be loaded: {_first_line(error)}") from error
        self._model = model.eval().requires_grad_(False)
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


def resolve(name: str) -> tuple[str, str | None]:
    """What open_clip calls an encoder: its model name and pretrained tag.

    Refuses weights trained with QuickGELU on an architecture without it: open_clip 3 only warns there, and
    embeds wrongly (`ViT-L-14/openai`; open_clip issue 771).
    """
    folder = encoder_folder(name)
    if folder is not None:
        return f"local-dir:{folder}", None
    architecture, _, pretrained = name.partition("/")
    config = open_clip.get_model_config(architecture) if ":" not in architecture else None
    if config is None:
        raise ModelError(
            f"encoder {name!r}: open_clip knows no architecture {architecture!r}; "
            "allowed: `emoji`, `local-dir:PATH`, `architecture/pretrained` such as ViT-L-14-quickgelu/openai"
        )
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
