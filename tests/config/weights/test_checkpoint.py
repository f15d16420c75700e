"""What a checkpoint in one file is, by its header: at SDXL's full size, without its numbers."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from harness.config.schema.model import SdxlModel
from harness.config.weights.checkpoint import described, model_faults, module_shapes, predicted
from harness.config.weights.sdxl import sdxl_shapes
from harness.diffusion.models.random_weights import hollow_pipelines
from tests.diffusion.original import original, write_hollow

State = dict[str, torch.Tensor]
ONE = torch.zeros(1)
MARKS = {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}
LORA = "lora_unet_input_blocks_4_1_proj_in.lora_down.weight"


@pytest.fixture(scope="module")
def whole() -> tuple[State, State]:
    """The tensors of SDXL's base and of its refiner, on the meta device."""
    pipelines = hollow_pipelines(SdxlModel(source="random", refiner="random", vae=None))
    found = []
    for pipeline, names in (
        (pipelines.base, ("unet", "text_encoder", "text_encoder_2", "vae")),
        (pipelines.refiner, ("unet", "text_encoder_2", "vae")),
    ):
        parts = {name: getattr(pipeline, name).state_dict() for name in names}
        found.append(original(parts, layers=2))
    return found[0], found[1]


@pytest.fixture
def model(tmp_path: Path) -> Callable[..., SdxlModel]:
    def made(source: State, **more: State | None) -> SdxlModel:
        named = {
            name: None if state is None else str(write_hollow(state, tmp_path / f"{name}.safetensors"))
            for name, state in {"refiner": None, "vae": None, "source": source, **more}.items()
        }
        return SdxlModel(**named)

    return made


def test_sdxl_is_taken_and_its_layers_are_known(
    whole: tuple[State, State], model: Callable[..., SdxlModel]
) -> None:
    config = model(whole[0], refiner=whole[1])
    assert list(model_faults(config)) == []
    assert described(config) == (
        "source.safetensors: SDXL in one file (UNet, two text encoders, VAE), does not say what it predicts"
    )
    shapes = module_shapes(config)
    for part, modules in sdxl_shapes().items():
        assert {name: shapes[part].get(name) for name in modules} == modules
    assert predicted(config) == "epsilon"


def test_what_it_predicts_is_said_by_marks_or_header(
    whole: tuple[State, State], model: Callable[..., SdxlModel]
) -> None:
    config = model({**whole[0], **MARKS})
    assert predicted(config) == "v_prediction"
    assert "predicts v, to zero terminal SNR" in str(described(config))
    told = config.model_copy(update={"prediction_type": "epsilon"})
    assert predicted(told) == "epsilon"


def test_a_checkpoint_without_a_vae_takes_one(
    whole: tuple[State, State], model: Callable[..., SdxlModel]
) -> None:
    state = {key: t for key, t in whole[0].items() if not key.startswith("first_stage_model.")}
    [fault] = model_faults(model(state))
    assert fault.endswith("has no VAE; give one as model.vae")
    vae = {
        key.removeprefix("first_stage_model."): t for key, t in whole[0].items() if key.startswith("first_")
    }
    assert list(model_faults(model(state, vae=vae))) == []


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({LORA: ONE}, "is an adapter: give it to an arm, or as adapter.file, not SDXL's base"),
        ({"cond_stage_model.transformer.text_model.x": ONE}, "is Stable Diffusion 1, not"),
        ({"cond_stage_model.model.ln_final.weight": ONE}, "is Stable Diffusion 2, not"),
        ({"model.diffusion_model.joint_blocks.0.x": ONE}, "is Stable Diffusion 3, not"),
        ({"double_blocks.0.img_attn.norm.key_norm.scale": ONE}, "is Flux, not"),
        ({"control_model.input_hint_block.0.weight": ONE}, "is a ControlNet, not"),
        ({"edm_vpred.sigma_max": ONE}, "EDM's noise"),
        ({"down_blocks.0.resnets.0.conv1.weight": ONE}, "is one part in diffusers' names: give its folder"),
        (
            {"first_stage_model.decoder.conv_in.weight": ONE},
            "is a VAE, not SDXL's base; give it as model.vae",
        ),
        ({"hello": ONE}, "is no checkpoint that is known here (it has hello), not SDXL's base"),
    ],
)
def test_what_is_no_base_is_refused_with_the_reason(
    model: Callable[..., SdxlModel], state: State, words: str, tmp_path: Path
) -> None:
    [fault] = model_faults(model(state))
    assert fault.startswith(f"source: {tmp_path}/source.safetensors ") and words in fault
    assert len(fault) - len(str(tmp_path)) < 250


def test_a_file_in_anothers_place(whole: tuple[State, State], model: Callable[..., SdxlModel]) -> None:
    base, refiner = whole
    [fault] = model_faults(model(refiner))
    assert "is SDXL's refiner, not SDXL's base; give it as model.refiner" in fault
    first, second = model_faults(model(base, refiner=base, vae=base))
    assert "refiner.safetensors is SDXL's base, not SDXL's refiner; give it as model.source" in first
    assert "vae.safetensors is SDXL's base, not a VAE" in second


def test_a_checkpoint_that_lacks_a_part_or_edits_images(
    whole: tuple[State, State], model: Callable[..., SdxlModel]
) -> None:
    base = whole[0]
    unet = {key: t for key, t in base.items() if key.startswith(("model.", "first_stage"))}
    [fault] = model_faults(model(unet))
    assert "has no first text encoder and no second text encoder; give a whole checkpoint" in fault
    first = "model.diffusion_model.input_blocks.0.0.weight"
    [fault] = model_faults(model({**base, first: torch.empty(320, 9, 3, 3, device="meta")}))
    assert "takes 9 channels and gives 4: it is for inpainting or editing images" in fault


def test_a_relative_of_sdxl_needs_its_configurations(
    whole: tuple[State, State], model: Callable[..., SdxlModel], tmp_path: Path
) -> None:
    deep = {key: t for key, t in whole[0].items() if "transformer_blocks.9" not in key}
    config = model(deep)
    [fault] = model_faults(config)
    assert "transformer_blocks.9" in fault and fault.endswith(
        "give its configurations' folder as model.config"
    )
    [fault] = model_faults(config.model_copy(update={"config": str(tmp_path)}))
    assert fault == f"config: {tmp_path} has no model_index.json; give a folder in diffusers' layout"
