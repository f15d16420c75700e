"""diffusers' blocks without what does nothing in SDXL's UNet: the same numbers, with less around them.

On small pictures a step's time is that of its many small operations: a division by 1.0 there and back, a
dropout of 0, a signature looked up in each attention, a picture turned round so that its channels come first.
"""

from typing import Any

import torch
from diffusers.models.activations import GEGLU
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor
from torch.nn import functional as F

from harness.models import residual, transformer


class LeanResnet(ResnetBlock2D):
    """The residual block with SiLU, to which the time is added."""

    def forward(self, input_tensor: Tensor, temb: Tensor, *_args: Any, **_kwargs: Any) -> Tensor:
        """As diffusers' own."""
        time_BC11 = self.time_emb_proj(F.silu(temb))[:, :, None, None]
        if residual.is_by_hand(self):
            return residual.by_hand(self, input_tensor, time_BC11)
        # Its gradients are summed up here first, as by hand. (A view would lose where the channels are.)
        input_tensor = torch.ops.aten.alias.default(input_tensor)
        hidden = self.conv1(F.silu(self.norm1(input_tensor))) + time_BC11
        hidden = self.conv2(F.silu(self.norm2(hidden)))
        return hidden + (input_tensor if self.conv_shortcut is None else self.conv_shortcut(input_tensor))


class LeanAttention(Attention):
    """Attention of the picture to itself or to words, without masks."""

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **_kwargs: Any,
    ) -> Tensor:
        """As diffusers' own."""
        assert attention_mask is None, "the pipelines mask nothing"
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = (
            projected.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projected in (self.to_q(hidden_states), self.to_k(source), self.to_v(source))
        )
        attended = F.scaled_dot_product_attention(query, key, value)
        out: Tensor = self.to_out[0](attended.transpose(1, 2).flatten(2))
        return out


class LeanBlock(BasicTransformerBlock):
    """Attention to itself, attention to the words, feed-forward; each after its LayerNorm and added."""

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        *_args: Any,
        **_kwargs: Any,
    ) -> Tensor:
        """As diffusers' own."""
        assert attention_mask is None and encoder_attention_mask is None, "the pipelines mask nothing"
        assert encoder_hidden_states is not None, "an SDXL has words"
        if transformer.is_by_hand(self):
            return transformer.by_hand(self, hidden_states, encoder_hidden_states)
        hidden_states = self.attn1(self.norm1(hidden_states)) + hidden_states
        hidden_states = self.attn2(self.norm2(hidden_states), encoder_hidden_states) + hidden_states
        fed = self.ff.net[2](self.ff.net[0](self.norm3(hidden_states)))
        return fed + hidden_states


class LeanGate(GEGLU):
    """GELU's gate."""

    def forward(self, hidden_states: Tensor, *_args: Any, **_kwargs: Any) -> Tensor:
        """As diffusers' own."""
        passed, gate = self.proj(hidden_states).chunk(2, dim=-1)
        return passed * F.gelu(gate)


class LeanTransformer(Transformer2DModel):
    """A picture as a row of pixels and back. In training its channels come last anyway: nothing is copied."""

    def _get_output_for_continuous_inputs(
        self,
        hidden_states: Tensor,
        residual: Tensor,
        batch_size: int,
        height: int,
        width: int,
        inner_dim: int,
    ) -> Tensor:
        """As diffusers' own, but for how it lies in memory."""
        if not torch.is_grad_enabled():
            return super()._get_output_for_continuous_inputs(
                hidden_states, residual, batch_size, height, width, inner_dim
            )
        rows: Tensor = self.proj_out(hidden_states)
        return rows.reshape(batch_size, height, width, inner_dim).permute(0, 3, 1, 2) + residual


def make_lean(unet: torch.nn.Module) -> None:
    """Give the UNet's blocks these classes, where nothing is left out by it."""
    for block in unet.modules():
        lean = _lean(block)
        if lean is not None:
            block.__class__ = lean


def _lean(block: Any) -> type[torch.nn.Module] | None:
    if type(block) is ResnetBlock2D and _is_plain_resnet(block):
        return LeanResnet
    if type(block) is Attention and _is_plain_attention(block):
        return LeanAttention
    if type(block) is BasicTransformerBlock and _is_plain_block(block):
        return LeanBlock
    if type(block) is GEGLU:
        return LeanGate
    if type(block) is Transformer2DModel and block.is_input_continuous and block.use_linear_projection:
        return LeanTransformer
    return None


def _is_plain_resnet(block: ResnetBlock2D) -> bool:
    return (
        block.time_embedding_norm == "default"
        and block.time_emb_proj is not None
        and not block.skip_time_act
        and block.upsample is None
        and block.downsample is None
        and block.output_scale_factor == 1
        and block.dropout.p == 0
        and isinstance(block.nonlinearity, torch.nn.SiLU)
    )


def _is_plain_attention(block: Attention) -> bool:
    return (
        type(block.processor) is AttnProcessor2_0
        and all(
            getattr(block, norm) is None
            for norm in ("spatial_norm", "group_norm", "norm_cross", "norm_q", "norm_k")
        )
        and not block.residual_connection
        and block.rescale_output_factor == 1
        and block.to_out[1].p == 0
    )


def _is_plain_block(block: BasicTransformerBlock) -> bool:
    return (
        block.norm_type == "layer_norm"
        and block.pos_embed is None
        and block.attn2 is not None
        and not block.only_cross_attention
        and block._chunk_size is None
        and len(block.ff.net) == 3
        and block.ff.net[1].p == 0
        and not hasattr(block, "fuser")
    )
