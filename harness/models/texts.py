"""The embeddings of texts in files, so that not every worker runs the text encoders on the same prompts."""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file

from harness.errors import ModelError
from harness.models.encoding import PromptEncoder


class StoredTexts:
    """What a model's text encoders make of texts while no adapter acts on them; weights in compel's syntax.

    Each text is encoded alone, and its file holds it to the last bit.
    """

    def __init__(self, encoders: Mapping[str, PromptEncoder]) -> None:
        """Those of the base and, where there is one, of the refiner, by name."""
        self._encoders = encoders

    def unknown(self, texts: Iterable[str]) -> set[str]:
        """Those that would have to be encoded."""
        encoders = self._encoders.values()
        return {text for text in texts if not all(encoder.knows(text) for encoder in encoders)}

    def write(self, texts: Iterable[str], file: Path) -> None:
        """Encode them into a file. One that cannot be encoded is left out: drawing with it says why."""
        tensors = {}
        for text in texts:
            with suppress(ModelError):
                for name, encoder in self._encoders.items():
                    encoded = encoder.positive(text)
                    embeds, pooled = _names(name, text)
                    tensors[embeds] = encoded.embeds_1TD.cpu().contiguous()
                    tensors[pooled] = encoded.pooled_1P.cpu().contiguous()
        save_file(tensors, file)

    def read(self, texts: Iterable[str], file: Path) -> None:
        """Know those of the texts that the file holds."""
        with safe_open(file, framework="pt") as stored:
            held = set(stored.offset_keys())
            for text in texts:
                for name, encoder in self._encoders.items():
                    embeds, pooled = _names(name, text)
                    if embeds in held:
                        encoder.remember(
                            text, embeds=stored.get_tensor(embeds), pooled=stored.get_tensor(pooled)
                        )


def _names(encoder: str, text: str) -> tuple[str, str]:
    return f"{encoder} embeds {text}", f"{encoder} pooled {text}"
