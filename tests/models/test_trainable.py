import json
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors import safe_open

from harness.models import load_model
from harness.models.model import DrawSettings, Model, Row, RowAdapter
from harness.models.rowwise import LORA_FILE
from harness.spec.trial import LoraAdapter
from tests.models.adapters import random_adapter
from tests.models.test_sdxl import difference, seeded, stock
from tests.models.tiny import tiny_spec as spec_of

ADAPTER = LoraAdapter(rank=4, alpha=8.0)


def unet_of(model: Model) -> UNet2DConditionModel:
    return model._unet  # type: ignore[attr-defined]


def noisy(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(rows, 8, 8, 8, generator=seeded(0)), torch.tensor([10, 500, 900][:rows])


@pytest.fixture(scope="module", params=["bf16", "fp16"])
def half_model(request: pytest.FixtureRequest, tiny_folder: Path) -> Model:
    spec = spec_of(tiny_folder, refiner=False).model_copy(update={"precision": request.param})
    return load_model(spec, device="cpu")


def test_a_fresh_adapter_changes_nothing(tiny_model: Model):
    noise, timesteps = noisy(3)
    conditioning = tiny_model.condition("wrong")
    with torch.no_grad(), tiny_model.attach(ADAPTER, 0) as trainable:
        predicted = trainable.predict(noise, timesteps, conditioning)
    added = {
        "text_embeds": conditioning.pooled_1P.expand(3, -1),
        "time_ids": conditioning.time_ids_16.expand(3, -1),
    }
    words = conditioning.prompt_embeds_1TD.expand(3, -1, -1)
    with torch.no_grad():
        expected = unet_of(tiny_model)(noise, timesteps, words, added_cond_kwargs=added).sample
    assert torch.equal(predicted, expected) and predicted.dtype == torch.float32


def test_leaving_gives_the_unet_back_exactly(tiny_model: Model):
    unet = unet_of(tiny_model)

    def everything() -> tuple[
        list[tuple[str, int, type, bool]], dict[str, torch.Tensor], list[bool], set[str]
    ]:
        modules = [(name, id(m), type(m), m.training) for name, m in unet.named_modules()]
        values = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
        return modules, values, [p.requires_grad for p in unet.parameters()], set(vars(unet))

    before = everything()
    with tiny_model.attach(ADAPTER, 0) as trainable:
        assert not unet.conv_in.weight.requires_grad
        for parameter in trainable.parameters():
            parameter.data.normal_()
    with pytest.raises(KeyboardInterrupt), tiny_model.attach(ADAPTER, 0):
        raise KeyboardInterrupt
    after = everything()
    assert after[0] == before[0] and after[2:] == before[2:]
    assert all(torch.equal(after[1][name], tensor) for name, tensor in before[1].items())
    with tiny_model.attach(ADAPTER, 0):
        pass  # and it can be attached again


def test_the_start_depends_on_the_seed_alone(tiny_model: Model, half_model: Model):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    starts = []
    for model, seed in [(tiny_model, 1), (tiny_model, 1), (half_model, 1), (tiny_model, 2)]:
        with model.attach(ADAPTER, seed) as trainable:
            starts.append(trainable.state_dict())
    assert torch.equal(state, torch.get_rng_state())
    for same in starts[1:3]:
        assert all(torch.equal(same[key], tensor) for key, tensor in starts[0].items())
    first = next(key for key in starts[0] if "lora_A" in key)
    assert not torch.equal(starts[0][first], starts[3][first])
    assert all((tensor == 0).all() == ("lora_B" in key) for key, tensor in starts[0].items())


def test_adapter_and_optimizer_are_fp32_on_a_half_precision_base(half_model: Model):
    conditioning = half_model.condition("wrong")
    noise, timesteps = noisy(2)
    with half_model.attach(ADAPTER, 0) as trainable:
        parameters = list(trainable.parameters())
        assert unet_of(half_model).conv_in.weight.dtype != torch.float32
        assert {parameter.dtype for parameter in parameters} == {torch.float32}
        optimizer = torch.optim.AdamW(parameters, lr=1e-6)
        before = trainable.state_dict()
        predicted = trainable.predict(noise, timesteps, conditioning)
        assert predicted.dtype == torch.float32
        predicted.square().sum().backward()  # a mean's gradients would vanish in fp16
        optimizer.step()
        after = trainable.state_dict()
        moments = [state["exp_avg"].dtype for state in optimizer.state.values()]
    moved = [(after[key] - before[key]).abs().max().item() for key in after if "lora_B" in key]
    assert set(moments) == {torch.float32}
    assert min(moved) > 0 and max(moved) < 2e-6  # in half precision a step of 1e-6 would often vanish


def test_only_the_attentions_projections_are_trained(tiny_model: Model):
    with tiny_model.attach(ADAPTER, 0) as trainable:
        state = trainable.state_dict()
        parameters = list(trainable.parameters())
        trained = [name for name, p in unet_of(tiny_model).named_parameters() if p.requires_grad]
    assert len(state) == len(parameters) == len(trained)
    for key in state:
        module, matrix, weight = key.rsplit(".", 2)
        assert module.startswith("unet.") and matrix in ("lora_A", "lora_B") and weight == "weight"
        assert module.endswith((".to_q", ".to_k", ".to_v", ".to_out.0"))
    transformer_layers = 1 * 2 + 2 * 2 + 1 * 2  # in the down, up and middle blocks
    attentions = sum(key.endswith(".to_q.lora_A.weight") for key in state)
    assert attentions == len([n for n, _ in unet_of(tiny_model).named_modules() if n.endswith(".to_q")])
    assert attentions >= transformer_layers


def test_state_goes_round(tiny_model: Model):
    noise, timesteps = noisy(1)
    conditioning = tiny_model.condition("wrong")
    with torch.no_grad():
        with tiny_model.attach(ADAPTER, 0) as trainable:
            for parameter in trainable.parameters():
                parameter.data.normal_(std=0.1, generator=seeded(1))
            state = trainable.state_dict()
            expected = trainable.predict(noise, timesteps, conditioning)
        with tiny_model.attach(ADAPTER, 7) as trainable:
            trainable.load_state_dict(state)
            assert torch.equal(trainable.predict(noise, timesteps, conditioning), expected)
            state["unet.nothing"] = torch.zeros(1)
            with pytest.raises(AssertionError, match="other modules"):
                trainable.load_state_dict(state)


def test_state_dict_is_a_copy(tiny_model: Model):
    with tiny_model.attach(ADAPTER, 0) as trainable:
        state = trainable.state_dict()
        for parameter in trainable.parameters():
            parameter.data.fill_(1.0)
        assert not any((tensor == 1).all() for tensor in state.values())


def test_conditioning_can_be_trained_on_after_drawing(tiny_model: Model):
    """Drawing runs in inference mode, and what it caches must not poison autograd."""
    row = Row(prompt="(wrong)++", negative="wrong", seed=0, guidance=5.0)
    tiny_model.draw([row], DrawSettings(steps=2, refiner_start=None))
    noise, timesteps = noisy(1)
    for prompt in ("wrong", "(wrong)++", "(wrong)1.5"):
        with tiny_model.attach(ADAPTER, 0) as trainable:
            trainable.predict(noise, timesteps, tiny_model.condition(prompt)).sum().backward()


def test_drawing_inside_attach_is_a_mistake(tiny_model: Model):
    row = Row(prompt="a fox", negative="", seed=0, guidance=5.0)
    with tiny_model.attach(ADAPTER, 0), pytest.raises(AssertionError, match="outside attach"):
        tiny_model.draw([row], DrawSettings(steps=2, refiner_start=None))


@pytest.mark.parametrize("alpha", ["rank", "sqrt_rank", 1.0])
def test_a_stock_pipeline_with_the_file_draws_the_harness_picture(
    tiny_model: Model, tiny_folder: Path, tmp_path: Path, alpha
):
    adapter = LoraAdapter(rank=4, alpha=alpha)
    random_adapter(tiny_model, tmp_path, seed=1, rank=4, alpha=adapter.alpha_value)
    pipeline = stock(tiny_folder)
    pipeline.load_lora_weights(tmp_path)
    scales = {m.scaling["default_0"] for m in pipeline.unet.modules() if hasattr(m, "scaling")}
    assert scales == {adapter.alpha_value / 4}
    expected = pipeline(
        "a red fox", negative_prompt="wrong", num_inference_steps=6, guidance_scale=5.0, generator=seeded(3)
    ).images[0]
    acts = RowAdapter(path=tmp_path, scale=1.0, branch="both")
    row = Row(prompt="a red fox", negative="wrong", seed=3, guidance=5.0, adapters=(acts,))
    [picture] = tiny_model.draw([row], DrawSettings(steps=6, refiner_start=None))
    assert difference(picture.image, expected) <= 2


def test_the_file_says_what_it_is(tiny_model: Model, tmp_path: Path):
    random_adapter(tiny_model, tmp_path / "one", seed=1)
    random_adapter(tiny_model, tmp_path / "two", seed=1)
    data = (tmp_path / "one" / LORA_FILE).read_bytes()
    assert data == (tmp_path / "two" / LORA_FILE).read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    with safe_open(tmp_path / "one" / LORA_FILE, framework="pt") as file:
        assert file.metadata() == header
    assert header["made_by"] == "test" and header["format"] == "pt"
    assert list(header) == sorted(header)  # the library's own order changes from process to process
    config = json.loads(header["lora_adapter_metadata"])
    assert config["unet.lora_alpha"] == 8.0 and config["unet.r"] == 4
