"""A UNet with one fresh PEFT LoRA to train, and the file such an adapter is kept in."""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig
from safetensors.torch import save

from harness.models.model import Conditioning
from harness.models.rowwise import LORA_FILE, METADATA_KEY, PREFIX
from harness.spec.trial import AdapterSpec

TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]
NAME = "trained"


class TrainableLora:
    """The `Trainable` of an SDXL UNet; made by `attach`."""

    def __init__(self, unet: UNet2DConditionModel, dtype: torch.dtype) -> None:
        self._unet = unet
        self._dtype = dtype  # the base's
        named = ((name, p) for name, p in unet.named_parameters() if ".lora_" in name)
        self._parameters = {
            PREFIX + name.replace(f".{NAME}.", "."): parameter for name, parameter in sorted(named)
        }

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        """The adapter's parameters, fp32, ordered by name."""
        yield from self._parameters.values()

    def predict(
        self, noisy_BChw: torch.Tensor, timesteps_B: torch.Tensor, conditioning: Conditioning
    ) -> torch.Tensor:
        """The UNet's output, computed in the base's precision, returned in fp32."""
        rows = noisy_BChw.shape[0]
        predicted = self._unet(
            noisy_BChw.to(self._dtype),
            timesteps_B,
            encoder_hidden_states=conditioning.prompt_embeds_1TD.expand(rows, -1, -1),
            added_cond_kwargs={
                "text_embeds": conditioning.pooled_1P.expand(rows, -1),
                "time_ids": conditioning.time_ids_16.expand(rows, -1),
            },
            return_dict=False,
        )[0]
        return predicted.float()

    def state_dict(self) -> dict[str, torch.Tensor]:
        """A copy of the adapter: diffusers' keys, fp32, on the CPU."""
        return {key: p.detach().to("cpu", torch.float32, copy=True) for key, p in self._parameters.items()}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Put back what `state_dict` gave."""
        assert state.keys() == self._parameters.keys(), "the state is of an adapter on other modules"
        with torch.no_grad():
            for key, parameter in self._parameters.items():
                parameter.copy_(state[key])


@contextmanager
def attach(unet: UNet2DConditionModel, adapter: AdapterSpec, seed: int) -> Iterator[TrainableLora]:
    """Attach a fresh LoRA to the attention projections; on leaving, the UNet is exactly what it was.

    A is Kaiming-uniform with a = √5 and B is zero, as in LoRA's reference code and by PEFT's default: unlike
    the gaussian of deviation 1 / rank, this does not make the start depend on the rank. The numbers come from
    a CPU generator of this seed, whatever the device and the base's precision; global random state is kept.
    """
    assert not is_attached(unet), "one adapter is trained at a time"
    dtype = unet.dtype
    config = LoraConfig(r=adapter.rank, lora_alpha=adapter.alpha_value, target_modules=TARGETS)  # type: ignore[arg-type, unused-ignore]
    try:
        with torch.random.fork_rng():
            unet.add_adapter(config, NAME)
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in sorted(unet.named_parameters()):
            if ".lora_" in name:
                # PEFT puts adapters in the base's dtype; in half precision small updates would vanish.
                parameter.data = _initial(name, parameter, generator).to(parameter.device)
        yield TrainableLora(unet, dtype)
    finally:
        unet.unload_lora()
        unet._hf_peft_config_loaded = False  # unload_lora leaves None here


def is_attached(unet: UNet2DConditionModel) -> bool:
    """True inside `attach`."""
    return bool(unet._hf_peft_config_loaded)


def _initial(name: str, parameter: torch.nn.Parameter, generator: torch.Generator) -> torch.Tensor:
    weight = torch.zeros(parameter.shape, dtype=torch.float32)
    if ".lora_A." in name:
        torch.nn.init.kaiming_uniform_(weight, a=math.sqrt(5), generator=generator)
    return weight


def save_adapter(
    state: dict[str, torch.Tensor], adapter: AdapterSpec, folder: Path, metadata: dict[str, str]
) -> None:
    """Write the adapter as stock `load_lora_weights` reads it: rank and alpha stand in the header."""
    config = {"r": adapter.rank, "lora_alpha": adapter.alpha_value, "target_modules": TARGETS}
    header = {
        **metadata,
        "format": "pt",
        METADATA_KEY: json.dumps({PREFIX + name: value for name, value in config.items()}, sort_keys=True),
    }
    assert METADATA_KEY not in metadata and "format" not in metadata, "these names are diffusers'"
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {key: tensor.contiguous() for key, tensor in sorted(state.items())}
    (folder / LORA_FILE).write_bytes(_with_sorted_metadata(save(tensors, header)))


def _with_sorted_metadata(data: bytes) -> bytes:
    """The same file, its metadata in order: the library's own order changes from process to process."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(length)
    assert len(text) == length, "only the order may change"
    return data[:8] + text + data[8 + length :]
