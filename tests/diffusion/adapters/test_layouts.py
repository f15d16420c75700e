"""Layouts that stock diffusers takes for SDXL draw stock diffusers' image; so do some that it does not take.

Files are written by the libraries that write them, or their keys are renamed from such a file.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.utils import convert_state_dict_to_diffusers, convert_state_dict_to_kohya
from peft import (
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    OFTConfig,
    PeftConfig,
    get_peft_model,
    get_peft_model_state_dict,
)
from PIL.Image import Image
from safetensors.torch import load_file, save_file

from harness.config.weights.layout import described, read_layout
from harness.config.weights.names import to_sgm
from harness.diffusion.adapters.kohya import State, to_kohya
from harness.diffusion.models.loading import load_sdxl
from harness.diffusion.models.model import Row, RowAdapter, SamplerSettings
from harness.diffusion.models.sdxl import Sdxl
from harness.errors import ModelError
from tests.diffusion.adapters.narrow import narrow_sdxl
from tests.diffusion.models.test_sdxl import difference, mean_difference, seeded, stock
from tests.diffusion.tiny import tiny_config

FOX = Row(prompt="a red fox", negative="wrong", seed=3, guidance=3.0)
SETTINGS = SamplerSettings(steps=2, refiner_start=None)
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
MORE = ("proj_in", "proj_out", "ff.net.0.proj", "ff.net.2")
CONVOLUTIONS = ("conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv", "conv_out")
TEXT_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")
ROUNDING = 0.3  # levels of 255, on average; an adapter moves an image by 10 and more
TEXT_MORE = ("fc1", "fc2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose UNet has SDXL's blocks, narrow."""
    return narrow_sdxl(tmp_path_factory.mktemp("layouts") / "base")


@pytest.fixture(scope="module")
def model(folder: Path) -> Sdxl:
    config = tiny_config(folder, refiner=False)
    return Sdxl(config, load_sdxl(config), device="cpu")


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> StableDiffusionXLPipeline:
    return stock(folder)


def by_stock(pipeline: StableDiffusionXLPipeline, file: Path | None) -> Image:
    try:
        if file is not None:
            pipeline.load_lora_weights(file.parent, weight_name=file.name)
        return pipeline(
            FOX.prompt,
            negative_prompt=FOX.negative,
            num_inference_steps=2,
            guidance_scale=3.0,
            generator=seeded(3),
        ).images[0]
    finally:
        pipeline.unload_lora_weights()


def by_us(model: Sdxl, path: Path) -> Image:
    row = replace(FOX, adapters=(RowAdapter(path=path, scale=1.0, branch="both"),))
    return model.generate([row], SETTINGS)[0].image


def lora(
    pipeline: StableDiffusionXLPipeline,
    unet: tuple[str, ...] = ATTENTION,
    text: tuple[str, ...] = (),
    *,
    ranks: tuple[int, ...] = (4,),
) -> State:
    """PEFT's names behind the part's: random numbers, ranks in turn."""
    generator = torch.Generator().manual_seed(1)
    state: State = {}
    for part, ends in (("unet", unet), ("text_encoder", text), ("text_encoder_2", text)):
        names = [
            (name, module)
            for name, module in getattr(pipeline, part).named_modules()
            if ends and (name.endswith(tuple(f".{end}" for end in ends)) or name in ends)
        ]
        for place, (name, module) in enumerate(names):
            rank = ranks[place % len(ranks)]
            out, width, *kernel = module.weight.shape
            strength = 0.2 if part == "unet" else 0.1
            down = torch.randn(rank, width, *kernel, generator=generator) * strength / (1 + len(kernel))
            up = torch.randn(out, rank, *[1] * len(kernel), generator=generator) * strength
            state[f"{part}.{name}.lora_A.weight"], state[f"{part}.{name}.lora_B.weight"] = down, up
    assert state
    return state


def renamed(state: State, *pairs: tuple[str, str]) -> State:
    """The state with every piece of a key that begins a pair replaced, in order."""
    found = {}
    for key, tensor in state.items():
        for old, new in pairs:
            key = key.replace(old, new)
        found[key] = tensor
    return found


def of(state: State, part: str) -> State:
    return {key.removeprefix(f"{part}."): t for key, t in state.items() if key.startswith(f"{part}.")}


LORA_DOWN = ((".lora_A.", ".lora.down."), (".lora_B.", ".lora.up."))
TEXT_DOWN = ((".lora_A.", ".lora_linear_layer.down."), (".lora_B.", ".lora_linear_layer.up."))
PROCESSOR = tuple(
    (f".{name}.lora_{side}.", f".processor.{old}_lora.{new}.")
    for name, old in (("to_q", "to_q"), ("to_k", "to_k"), ("to_v", "to_v"), ("to_out.0", "to_out"))
    for side, new in (("A", "down"), ("B", "up"))
)
TEXT_PROCESSOR = tuple(
    (f".{name}.lora_{side}.", f".{old}_lora.{new}.")
    for name, old in (("q_proj", "to_q"), ("k_proj", "to_k"), ("v_proj", "to_v"), ("out_proj", "to_out"))
    for side, new in (("A", "down"), ("B", "up"))
)


def with_body(state: State) -> State:
    """transformers 5 dropped `text_model` from the first encoder; files keep it."""
    return {
        key.replace("text_encoder.encoder.", "text_encoder.text_model.encoder."): t
        for key, t in state.items()
    }


def script_2026(pipeline: Any, file: Path) -> None:
    """As train_dreambooth_lora_sdxl.py ends: converted by diffusers, saved by its pipeline."""
    state = with_body(lora(pipeline, ATTENTION, TEXT_ATTENTION))
    StableDiffusionXLPipeline.save_lora_weights(
        file.parent,
        weight_name=file.name,
        unet_lora_layers=convert_state_dict_to_diffusers(of(state, "unet")),
        text_encoder_lora_layers=convert_state_dict_to_diffusers(of(state, "text_encoder")),
        text_encoder_2_lora_layers=convert_state_dict_to_diffusers(of(state, "text_encoder_2")),
    )


def script_2023(pipeline: Any, file: Path) -> None:
    state = with_body(lora(pipeline, ATTENTION, TEXT_ATTENTION))
    unet = renamed({k: t for k, t in state.items() if k.startswith("unet.")}, *PROCESSOR)
    text = renamed({k: t for k, t in state.items() if k.startswith("text_")}, *TEXT_PROCESSOR)
    save_file({**unet, **text}, file)


def late_2023(pipeline: Any, file: Path) -> None:
    state = with_body(lora(pipeline, ATTENTION + MORE, TEXT_ATTENTION))
    unet = renamed({k: t for k, t in state.items() if k.startswith("unet.")}, *LORA_DOWN)
    text = renamed({k: t for k, t in state.items() if k.startswith("text_")}, *TEXT_DOWN)
    save_file({**unet, **text}, file)


def as_bin(pipeline: Any, file: Path) -> None:
    script_2023(pipeline, file.with_suffix(".safetensors"))
    torch.save(load_file(file.with_suffix(".safetensors")), file)


def diffusers_kohya(pipeline: Any, file: Path) -> None:
    """As the script's --output_kohya_format: diffusers' converter, whose names are diffusers' own."""
    save_file(convert_state_dict_to_kohya(with_body(lora(pipeline, ATTENTION, TEXT_ATTENTION))), file)


def kohya(pipeline: Any, file: Path) -> None:
    """sgm's names, an alpha that is not the rank, and all that kohya's scripts train."""
    state = lora(pipeline, ATTENTION + MORE + CONVOLUTIONS, TEXT_ATTENTION + TEXT_MORE)
    save_file(to_kohya(state, alpha=2.0), file)


def many_alphas(state: State) -> State:
    """kohya's file with alphas in turn."""
    state = to_kohya(state, alpha=1.0)
    names = [key for key in state if key.endswith(".alpha")]
    return {**state, **{key: torch.tensor((0.5, 1.0, 2.0)[i % 3]) for i, key in enumerate(names)}}


def kohya_of_many_ranks(pipeline: Any, file: Path) -> None:
    """Not on attention, where diffusers takes the commonest alpha for all."""
    save_file(many_alphas(lora(pipeline, MORE, ranks=(4, 2, 8))), file)


def half(pipeline: Any, file: Path, dtype: torch.dtype = torch.bfloat16) -> None:
    kohya(pipeline, file)
    save_file({key: t.to(dtype) if t.ndim else t for key, t in load_file(file).items()}, file)


def with_projection(pipeline: Any, file: Path) -> None:
    """kohya's layout with the second encoder's projection, of the commonest rank."""
    state = to_kohya(lora(pipeline), alpha=4.0)
    width = pipeline.text_encoder_2.text_projection.weight.shape
    generator = torch.Generator().manual_seed(2)
    name = "lora_te2_text_projection"
    state[f"{name}.lora_down.weight"] = torch.randn(4, width[1], generator=generator) * 0.1
    state[f"{name}.lora_up.weight"] = torch.randn(width[0], 4, generator=generator) * 0.1
    state[f"{name}.alpha"] = torch.tensor(4.0)
    text = lora(pipeline, (), TEXT_ATTENTION)
    save_file({**state, **to_kohya(text, alpha=4.0)}, file)


def with_patterns(pipeline: Any, file: Path) -> None:
    """diffusers' header with ranks and alphas by pattern, as its own scripts' LoraConfig writes them."""
    state = lora(pipeline, ATTENTION, ranks=(4, 2))
    ranks = {
        key.removeprefix("unet.").split(".lora_")[0]: t.shape[0] for key, t in state.items() if "_A" in key
    }
    odd = {name: rank for name, rank in ranks.items() if rank == 2}
    config = LoraConfig(
        r=4,
        lora_alpha=4,
        target_modules=list(ranks),
        rank_pattern=odd,
        alpha_pattern={f"^{name}": 1 for name in odd},
    )
    StableDiffusionXLPipeline.save_lora_weights(
        file.parent,
        weight_name=file.name,
        unet_lora_layers=of(state, "unet"),
        unet_lora_adapter_metadata=config.to_dict() | {"target_modules": list(ranks)},
    )


TAKEN_BY_STOCK: dict[str, Callable[[Any, Path], None]] = {
    "script_2026": script_2026,
    "script_2023": script_2023,
    "late_2023": late_2023,
    "as_bin": as_bin,
    "diffusers_kohya": diffusers_kohya,
    "kohya": kohya,
    "kohya_of_many_ranks": kohya_of_many_ranks,
    "half": half,
    "fp8": lambda pipeline, file: half(pipeline, file, torch.float8_e4m3fn),
    "with_projection": with_projection,
    "with_patterns": with_patterns,
}


@pytest.mark.parametrize("layout", TAKEN_BY_STOCK)
def test_what_stock_diffusers_takes_draws_its_image(
    model: Sdxl, pipeline: StableDiffusionXLPipeline, tmp_path: Path, layout: str
) -> None:
    file = tmp_path / ("lora.bin" if layout == "as_bin" else "lora.safetensors")
    TAKEN_BY_STOCK[layout](pipeline, file)
    if layout == "as_bin":
        file.with_suffix(".safetensors").unlink()
    expected, ours = by_stock(pipeline, file), by_us(model, file)
    effect = mean_difference(expected, by_stock(pipeline, None))
    assert effect > 0.5
    assert mean_difference(ours, expected) <= 0.03 * effect
    assert not read_layout(file).left_out


def test_alphas_that_differ_by_layer_are_kohyas(
    model: Sdxl, pipeline: StableDiffusionXLPipeline, tmp_path: Path
) -> None:
    """On attention too: the image is that of a file whose scale lies in its numbers."""
    state = lora(pipeline, ATTENTION, ranks=(4, 2, 8))
    theirs = many_alphas(state)
    file = saved(theirs, tmp_path / "kohya")
    folded = dict(state)
    for key in (key for key in state if ".lora_B." in key):
        flat = to_sgm(key.removeprefix("unet.").split(".lora_")[0].replace(".", "_"))
        folded[key] = state[key] * (theirs[f"lora_unet_{flat}.alpha"].item() / state[key].shape[1])
    expected = by_stock(pipeline, saved(folded, tmp_path / "folded"))
    assert difference(expected, by_stock(pipeline, None)) > 10
    assert mean_difference(by_us(model, file), expected) < ROUNDING


def peft_folder(state: State, pipeline: Any, folder: Path) -> Path:
    """PEFT's own writer."""
    unet = UNet2DConditionModel.from_config(pipeline.unet.config)
    names = sorted({key.split(".lora_")[0] for key in of(state, "unet")})
    wrapped = get_peft_model(unet, LoraConfig(r=4, lora_alpha=4, target_modules=names))
    own = dict(wrapped.named_parameters())
    for key, tensor in of(state, "unet").items():
        own[f"base_model.model.{key.replace('.weight', '.default.weight')}"].data = tensor
    wrapped.save_pretrained(folder)
    return folder


def unprefixed(state: State, pipeline: Any, folder: Path) -> Path:
    """diffusers' `unet.save_lora_adapter`."""
    unet = UNet2DConditionModel.from_config(pipeline.unet.config)
    names = sorted({key.split(".lora_")[0] for key in of(state, "unet")})
    unet.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=names))
    own = dict(unet.named_parameters())
    for key, tensor in of(state, "unet").items():
        own[key.replace(".weight", ".default.weight")].data = tensor
    unet.save_lora_adapter(folder)
    return folder


def sgm_dotted(state: State, prefix: str, down: tuple[str, str]) -> State:
    """ComfyUI's and OMI's names: sgm's blocks, with dots. Only the blocks' own names are renamed."""
    found = {}
    for key, tensor in state.items():
        module, _, side = key.removeprefix("unet.").partition(".lora_")
        flat = to_sgm(module.replace(".", "_"))
        assert flat is not None
        blocks, rest = flat.split("_transformer_blocks_")
        kept = module.partition(".transformer_blocks.")[2]
        head, *numbers = blocks.rsplit("_", 1 if blocks.startswith("middle") else 2)
        dotted = ".".join([head, *numbers, "transformer_blocks", kept])
        assert rest == kept.replace(".", "_")
        found[f"{prefix}{dotted}.{down[0] if side.startswith('A') else down[1]}.weight"] = tensor
    return found


NOT_TAKEN: dict[str, Callable[[State, Any, Path], Path]] = {
    "peft": peft_folder,
    "unprefixed": unprefixed,
    "comfyui": lambda s, p, f: saved(sgm_dotted(s, "diffusion_model.", ("lora_A", "lora_B")), f),
    "omi": lambda s, p, f: saved(
        {**sgm_dotted(s, "unet.", ("lora_down", "lora_up")), "bundle_emb.<wrong>.clip_l": torch.ones(1, 2)}, f
    ),
    "attention_processors": lambda s, p, f: saved(renamed(of(s, "unet"), *PROCESSOR), f),
    "lycoris": lambda s, p, f: saved(
        renamed(to_kohya(s, alpha=4.0, blocks="diffusers"), ("lora_unet_", "lycoris_")), f
    ),
    "old_keys_last": lambda s, p, f: saved(
        {**dict(list(s.items())[:2]), **renamed(dict(list(s.items())[2:]), *LORA_DOWN)}, f
    ),
}


def saved(state: State, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    save_file(state, folder / "lora.safetensors")
    return folder / "lora.safetensors"


@pytest.fixture(scope="module")
def expected(pipeline: StableDiffusionXLPipeline, tmp_path_factory: pytest.TempPathFactory) -> Image:
    """What stock diffusers draws with the same matrices under names that it takes."""
    return by_stock(pipeline, saved(lora(pipeline), tmp_path_factory.mktemp("expected")))


@pytest.mark.parametrize("layout", NOT_TAKEN)
def test_other_tools_layouts_draw_the_same_matrices(
    model: Sdxl, pipeline: StableDiffusionXLPipeline, tmp_path: Path, expected: Image, layout: str
) -> None:
    path = NOT_TAKEN[layout](lora(pipeline), pipeline, tmp_path / "out")
    assert mean_difference(by_us(model, path), expected) < ROUNDING
    if layout == "omi":
        assert "left out: 1 × bundle_emb.<wrong>.clip_l" in described(read_layout(path))


@pytest.mark.parametrize(
    "kind", ["loha", "loha_full", "lokr", "lokr_whole", "lokr_halves", "oft", "oft_exact"]
)
def test_pefts_other_kinds_act_as_peft_has_them(
    model: Sdxl, pipeline: StableDiffusionXLPipeline, tmp_path: Path, kind: str
) -> None:
    unet = UNet2DConditionModel.from_pretrained(pipeline.config._name_or_path, subfolder="unet")
    targets = [*ATTENTION, *(() if kind == "lokr_halves" or "oft" in kind else ("conv1",))]
    config: PeftConfig
    match kind:
        case "loha":
            config = LoHaConfig(r=2, alpha=4, target_modules=targets)
        case "loha_full":  # of more than the layers' own rank
            config = LoHaConfig(r=5, alpha=4, target_modules=targets)
        case "oft":
            config = OFTConfig(oft_block_size=4, target_modules=targets)
        case "oft_exact":
            config = OFTConfig(oft_block_size=8, use_cayley_neumann=False, target_modules=targets)
        case "lokr":
            config = LoKrConfig(r=2, alpha=4, target_modules=targets)
        case "lokr_whole":
            config = LoKrConfig(r=32, alpha=32, target_modules=targets)
        case _:
            config = LoKrConfig(r=1, alpha=2, decompose_both=True, decompose_factor=4, target_modules=targets)
    wrapped = get_peft_model(unet, config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        for name, parameter in wrapped.named_parameters():
            if any(sign in name for sign in ("hada", "lokr", "oft")):
                strength = {"loha": 0.4, "loha_full": 0.3}.get(kind, 0.15)
                parameter.data = torch.randn_like(parameter) * strength
    wrapped.save_pretrained(tmp_path / kind)
    assert any(kind[:3].replace("loh", "had") in key for key in get_peft_model_state_dict(wrapped))
    before = pipeline.unet
    try:
        pipeline.unet = wrapped.merge_and_unload()
        merged = by_stock(pipeline, None)
    finally:
        pipeline.unet = before
    assert difference(merged, by_stock(pipeline, None)) > 10
    assert mean_difference(by_us(model, tmp_path / kind), merged) < ROUNDING


@pytest.mark.parametrize("constraint", [None, 0.0, 1e-3])
def test_oft_of_kohya_and_lycoris_turns_outputs(
    model: Sdxl, pipeline: StableDiffusionXLPipeline, tmp_path: Path, constraint: float | None
) -> None:
    """Against weights that are turned here by the definition, to a convolution and at half the scale too."""
    generator, state = torch.Generator().manual_seed(4), {}
    unet = UNet2DConditionModel.from_pretrained(pipeline.config._name_or_path, subfolder="unet")
    own = dict(unet.named_modules())
    for name in (name for name in own if name.endswith((".to_q", ".to_v", ".conv1"))):
        weight = own[name].weight.data
        blocks = torch.randn(2, len(weight) // 2, len(weight) // 2, generator=generator) * 0.1
        flat = to_sgm(name.replace(".", "_"))
        state[f"{'oft' if constraint else 'lora'}_unet_{flat}.oft_blocks"] = blocks
        q = blocks - blocks.mT
        if constraint is not None:
            state[f"{'oft' if constraint else 'lora'}_unet_{flat}.alpha"] = torch.tensor(constraint)
            q = q * min(1.0, constraint * len(weight) / q.norm().item()) if constraint else q
        r = torch.block_diag(*((torch.eye(len(b)) + b) @ torch.linalg.inv(torch.eye(len(b)) - b) for b in q))
        turned = (r.T @ weight.flatten(1)).view_as(weight)
        own[name].weight.data = (weight + turned) / 2
    before = pipeline.unet
    try:
        pipeline.unet = unet
        merged = by_stock(pipeline, None)
    finally:
        pipeline.unet = before
    row = replace(FOX, adapters=(RowAdapter(path=saved(state, tmp_path / "oft"), scale=0.5, branch="both"),))
    ours = model.generate([row], SETTINGS)[0].image
    assert mean_difference(ours, merged) < ROUNDING
    assert difference(merged, by_stock(pipeline, None)) > (0 if constraint else 10)


PROJ_IN = "lora_unet_mid_block_attentions_0_proj_in"


class TestRefused:
    def refused(self, tmp_path: Path, state: State, metadata: dict[str, str] | None = None) -> str:
        file = tmp_path / "foreign.safetensors"
        save_file(state, file, metadata)
        with pytest.raises(ModelError) as caught:
            read_layout(file)
        text = str(caught.value)
        assert "foreign.safetensors" in text and len(text) < 300, text
        return text

    @pytest.mark.parametrize(
        ("role", "shape"),
        [
            ("hada_w1_a", (8,)),
            ("hada_w1_a", (8, 3)),
            ("hada_w2_a", (6, 2)),
            ("hada_w2_b", ()),
            ("hada_w2_b", (2, 4)),
        ],
    )
    def test_factors_that_do_not_fit_together(
        self, tmp_path: Path, role: str, shape: tuple[int, ...]
    ) -> None:
        whole = {"hada_w1_a": (8, 2), "hada_w1_b": (2, 6), "hada_w2_a": (8, 2), "hada_w2_b": (2, 6)}
        state = {f"{PROJ_IN}.{name}": torch.zeros(size) for name, size in {**whole, role: shape}.items()}
        assert "do not fit together" in self.refused(tmp_path, state)
        halves = {"lokr_w1": (2, 2), "lokr_w2_a": (4, 2), "lokr_w2_b": (3, 4)}
        state = {f"{PROJ_IN}.{name}": torch.zeros(size) for name, size in halves.items()}
        assert "do not fit together" in self.refused(tmp_path, state)

    @pytest.mark.parametrize(
        ("key", "words"),
        [
            ("lora_te3_encoder_block_0_q.lora_down.weight", "another model"),
            ("transformer.double_blocks.0.attn.to_q.lora_A.weight", "another model"),
            ("unet.joint_blocks.0.attn.to_q.lora_A.weight", "no module of SDXL's UNet"),
            ("text_model.encoder.layers.0.self_attn.q_proj.lora_A.weight", "which of the two"),
            ("unet.mid_block.attentions.0.proj_in.lora_B.bias", "lora_bias"),
            ("lora_unet_mid_block_attentions_0_proj_in.diff", "whole weights"),
            ("lora_unet_mid_block_attentions_0_proj_in.oft_blocks", "no OFT with blocks of"),
            ("lora_unet_mid_block_attentions_0_proj_in.rescale", "an OFT that also scales"),
            ("unet.mid_block.attentions.0.proj_in.oft_R.weight", "no OFT with blocks of"),
            ("unet.mid_block.attentions.0.proj_in.lora_A.weight", "must have lora_A and lora_B"),
            ("lora_unet_mid_block_attentions_0_proj_in.hada_w1_a", "no whole LoHa"),
            ("lora_controlnet", "ControlNet"),
            ("string_to_param.*", "embedding for one text encoder"),
            ("hello", "no tensor of a LoRA"),
        ],
    )
    def test_by_its_keys(self, pipeline: Any, tmp_path: Path, key: str, words: str) -> None:
        assert words in self.refused(tmp_path, {key: torch.zeros(2, 2)})

    def test_blocks_of_butterflies(self, tmp_path: Path) -> None:
        key = "lora_unet_mid_block_attentions_0_proj_in.oft_blocks"
        assert "is a BOFT, which cannot be read" in self.refused(tmp_path, {key: torch.zeros(2, 4, 4, 4)})

    def test_every_key_is_looked_at(self, pipeline: Any, tmp_path: Path) -> None:
        assert "hello" in self.refused(tmp_path, {**lora(pipeline), "hello": torch.zeros(1)})

    def test_by_its_header(self, pipeline: Any, tmp_path: Path) -> None:
        for config, words in (
            ({"unet.r": 4, "unet.lora_alpha": 8, "unet.alpha_pattern": {"a|(b+)+": 2}}, "no plain name"),
            ({"unet.lora_alpha": "8"}, "must be a number above 0"),
            ({"unet.lora_alpha": 4e300}, "must be a number above 0, at most 1,000,000"),
            ({"unet.lora_bias": True}, "cannot act row by row"),
            ({"unet.peft_type": "BOFT"}, "it is PEFT's BOFT; allowed: LORA, LOHA, LOKR, OFT"),
            ({"unet.coft": True}, "uses coft, which cannot be read"),
        ):
            text = self.refused(tmp_path, lora(pipeline), {"lora_adapter_metadata": json.dumps(config)})
            assert words in text

    def test_a_pickle_that_is_code(self, pipeline: Any, tmp_path: Path) -> None:
        state: dict[str, Any] = {**lora(pipeline), "run": Path("x")}
        torch.save(state, tmp_path / "lora.bin")
        with pytest.raises(ModelError, match=r"lora\.bin cannot be read as tensors \(it holds pathlib"):
            read_layout(tmp_path / "lora.bin")
