"""Where an adapter acts: the layers that its targets and blocks name."""

from typing import Any

import pytest

from harness.config.schema.adapter import LowRankAdapter
from harness.diffusion.adapters.init import unet_targets
from harness.diffusion.models.attach import is_attached
from harness.diffusion.models.model import Fresh, Model
from harness.errors import ModelError
from tests.diffusion.adapters.adapters import attached, base_of


@pytest.mark.parametrize(
    ("targets", "endings"),
    [
        (("attention",), {"to_q", "to_k", "to_v", "to_out.0"}),
        (("feed_forward",), {"net.0.proj", "net.2"}),
        (("projections",), {"proj_in", "proj_out"}),
        (("time_embeddings",), {"time_emb_proj"}),
        (("convolutions",), {"conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv"}),
    ],
)
def test_each_target_is_its_layers(tiny_model: Model, targets: Any, endings: set[str]):
    unet = base_of(tiny_model).unet
    names = unet_targets(unet, LowRankAdapter(targets=targets))
    assert {next(e for e in endings if name.endswith(f".{e}")) for name in names} == endings
    every = [name for name, _ in unet.named_modules() if name.endswith(tuple(f".{e}" for e in endings))]
    assert names == sorted(every) and "conv_in" not in names
    with attached(tiny_model, LowRankAdapter(rank=2, targets=targets), 0) as trainable:
        assert {key.split(".lora_")[0] for key in trainable.state_dict()} == {
            f"unet.{name}" for name in names
        }


def test_blocks_choose_where(tiny_model: Model):
    blocks = ("mid_block", "up_blocks.0.attentions.1")
    with attached(tiny_model, LowRankAdapter(rank=2, blocks=blocks), 0) as trainable:
        modules = {key.removeprefix("unet.") for key in trainable.state_dict()}
    assert all(name.startswith(tuple(f"{block}." for block in blocks)) for name in modules)
    assert all(any(name.startswith(f"{block}.") for name in modules) for block in blocks)
    for block in ("down_blocks.0", "up_blocks.0.attentions.10", "mid_block.resnets.0"):
        allowed = (
            "there is down_blocks.1, down_blocks.1.attentions.0, mid_block, mid_block.attentions.0, up_blocks"
        )
        with pytest.raises(ModelError, match=f"{block}, where the UNet has nothing of attention; {allowed}"):
            tiny_model.attach(
                [Fresh(adapter=LowRankAdapter(blocks=("mid_block", block)), seed=0)]
            ).__enter__()
    assert not is_attached(base_of(tiny_model))


def test_the_text_encoders_layers_are_those_that_sdxl_uses(tiny_model: Model):
    with attached(tiny_model, LowRankAdapter(text_encoders=True), 0) as trainable:
        layers = [key for key in trainable.state_dict() if key.startswith("text") and "lora_A" in key]
    assert len(layers) == (2 + 3) * 4  # 3 layers each, of which SDXL does not use the first encoder's last
    both = LowRankAdapter(text_encoders=True, text_encoder_targets=("attention", "mlp"))
    with attached(tiny_model, both, 0) as trainable:
        layers = [key for key in trainable.state_dict() if key.startswith("text") and "lora_A" in key]
    assert len(layers) == (2 + 3) * 6
