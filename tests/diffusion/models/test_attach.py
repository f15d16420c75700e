"""What is attached for training: it starts as nothing, is fp32, and leaves nothing behind."""

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.attention import BasicTransformerBlock

from harness.config.schema.adapter import (
    AdapterConfig,
    LowRankAdapter,
    OftAdapter,
    ProductAdapter,
    TextualInversion,
)
from harness.diffusion.models import load_model
from harness.diffusion.models.model import Fresh, Model, Row, SamplerSettings
from tests.diffusion.adapters.adapters import Alone, attached, base_of
from tests.diffusion.models.test_sdxl import seeded
from tests.diffusion.tiny import tiny_config as spec_of

ADAPTER = LowRankAdapter(rank=4, alpha=8.0)
EVERYWHERE = ("attention", "convolutions", "feed_forward")
WHOLE: dict[str, AdapterConfig] = {
    kind: LowRankAdapter(kind=kind, rank=2, targets=EVERYWHERE, text_encoders=True, dropout=0.2)
    for kind in ("lora", "rslora", "dora")
}
ALONE: dict[str, AdapterConfig] = {
    "loha": ProductAdapter(kind="loha", rank=2, targets=EVERYWHERE),
    "lokr": ProductAdapter(kind="lokr", rank=2, factor=4, targets=EVERYWHERE),
    "oft": OftAdapter(kind="oft", block_size=4, targets=("attention", "feed_forward")),
}
KINDS: dict[str, AdapterConfig] = {
    "attention": ADAPTER,
    **WHOLE,
    **ALONE,
    "word": TextualInversion(vectors=2),
}
CAPTIONS = ("a wrong fox", "", "a (wrong)++ fox")


def inputs(rows: int) -> tuple[torch.Tensor, torch.Tensor, Sequence[str], torch.Tensor]:
    time_ids = torch.tensor([[64.0, 64, 0, 0, 64, 64], [80, 64, 8, 0, 64, 64], [64, 96, 0, 16, 64, 64]])
    noise = torch.randn(3, 8, 8, 8, generator=seeded(0))
    return noise[:rows], torch.tensor([10, 500, 900][:rows]), CAPTIONS[:rows], time_ids[:rows]


def parameters_of(trainable: Alone) -> list[torch.nn.Parameter]:
    return [parameter for group in trainable.groups() for parameter in group.parameters]


def randomise(trainable: Alone) -> None:
    """As if it were trained: then every part of it bears on what is predicted."""
    generator = seeded(1)
    state = {
        key: tensor * (1 + 0.1 * torch.randn(tensor.shape, generator=generator))
        if "magnitude" in key or key.startswith("clip")
        else torch.randn(tensor.shape, generator=generator) * 0.05
        for key, tensor in trainable.state_dict().items()
    }
    trainable.load_state_dict(state)


def gradients(trainable: Alone) -> list[torch.Tensor]:
    trainable.predict(*inputs(3)).square().sum().backward()
    found = []
    for parameter in parameters_of(trainable):
        assert parameter.grad is not None
        found.append(parameter.grad.clone())
        parameter.grad = None
    return found


@pytest.fixture(scope="module", params=["bf16", "fp16"])
def half_model(request: pytest.FixtureRequest, tiny_folder: Path) -> Model:
    config = spec_of(tiny_folder, refiner=False).model_copy(update={"precision": request.param})
    return load_model(config, device="cpu")


def plain_prediction(model: Model, rows: int) -> torch.Tensor:
    """What the pipeline's own parts predict, one row at a time."""
    base, predicted = base_of(model), []
    noise, timesteps, captions, time_ids = inputs(rows)
    for row, caption in enumerate(captions):
        words = model._words.negative(caption)  # type: ignore[attr-defined]
        added = {"text_embeds": words.pooled_1P, "time_ids": time_ids[row : row + 1]}
        with torch.no_grad():
            predicted.append(
                base.unet(
                    noise[row : row + 1], timesteps[row], words.embeds_1TD, added_cond_kwargs=added
                ).sample
            )
    return torch.cat(predicted)


@pytest.mark.parametrize("kind", ["attention", *WHOLE, *ALONE])
def test_a_fresh_adapter_changes_nothing(tiny_model: Model, kind: str):
    with torch.no_grad(), attached(tiny_model, KINDS[kind], 0) as trainable:
        predicted = trainable.predict(*inputs(3))
    with torch.no_grad(), attached(tiny_model, TextualInversion(word="ugly"), 0) as nothing:
        expected = nothing.predict(*inputs(3))
    assert predicted.dtype == torch.float32
    if kind == "dora":  # which divides each norm by itself
        torch.testing.assert_close(predicted, expected, rtol=1e-5, atol=1e-6)
    else:
        assert torch.equal(predicted, expected)
    torch.testing.assert_close(predicted, plain_prediction(tiny_model, 3), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_leaving_gives_the_model_back_exactly(tiny_model: Model, kind: str):
    base = base_of(tiny_model)
    parts = [base.unet, base.text_encoder, base.text_encoder_2]
    base.encode_prompt("a fox")  # transformers keeps something in the encoders when they first run

    def modules() -> list[object]:
        return [
            (
                name,
                id(m),
                type(m),
                m.training,
                sorted(vars(m)),
                len(m._forward_hooks),
                vars(m).get("gradient_checkpointing"),
            )
            for part in parts
            for name, m in part.named_modules()
        ]

    def values() -> dict[str, torch.Tensor]:
        return {f"{i}.{n}": t.clone() for i, part in enumerate(parts) for n, t in part.state_dict().items()}

    before, numbers, random = modules(), values(), torch.get_rng_state()
    with attached(tiny_model, KINDS[kind], 0, checkpointing=True) as trainable:
        trainable.predict(*inputs(3))
        randomise(trainable)
    torch.set_rng_state(random)
    with pytest.raises(KeyboardInterrupt), attached(tiny_model, KINDS[kind], 0):
        raise KeyboardInterrupt
    assert torch.equal(random, torch.get_rng_state())
    assert modules() == before
    assert not any(parameter.requires_grad for part in parts for parameter in part.parameters())
    after = values()
    assert after.keys() == numbers.keys() and all(torch.equal(after[n], t) for n, t in numbers.items())


def test_the_start_depends_on_the_seed_alone(tiny_model: Model, half_model: Model):
    starts = []
    for model, seed in [(tiny_model, 1), (tiny_model, 1), (half_model, 1), (tiny_model, 2)]:
        with attached(model, WHOLE["lora"], seed) as trainable:
            starts.append(trainable.state_dict())
    for same in starts[1:3]:
        assert all(torch.equal(same[key], tensor) for key, tensor in starts[0].items())
    downs = [key for key in starts[0] if "lora_A" in key]
    assert all(not torch.equal(starts[0][key], starts[3][key]) for key in downs)
    assert all((tensor == 0).all() == ("lora_B" in key) for key, tensor in starts[0].items())


@pytest.mark.parametrize("kind", ["attention", "dora", *ALONE, "word"])
def test_adapter_and_optimizer_are_fp32_on_a_half_precision_base(half_model: Model, kind: str):
    with attached(half_model, KINDS[kind], 0) as trainable:
        parameters = parameters_of(trainable)
        assert base_of(half_model).unet.conv_in.weight.dtype != torch.float32
        assert {parameter.dtype for parameter in parameters} == {torch.float32}
        optimizer = torch.optim.AdamW(parameters, lr=1e-6)
        before = trainable.state_dict()
        predicted = trainable.predict(*inputs(2))
        assert predicted.dtype == torch.float32
        predicted.square().sum().backward()  # a mean's gradients would vanish in fp16
        optimizer.step()
        after = trainable.state_dict()
        moments = {state["exp_avg"].dtype for state in optimizer.state.values()}
    first = re.compile(r"lora_B|hada_w2_b|lokr_w1|oft_R|clip_l$")  # what has a gradient at the start
    moved = [(after[key] - before[key]).abs().max().item() for key in after if first.search(key)]
    assert moments == {torch.float32}
    assert min(moved) > 0 and max(moved) < 2e-6  # in half precision a step of 1e-6 would often vanish


@pytest.mark.parametrize("kind", KINDS)
def test_groups_are_by_part_and_side(tiny_model: Model, kind: str):
    with attached(tiny_model, KINDS[kind], 0) as trainable:
        groups, state = trainable.groups(), trainable.state_dict()
    of_state: dict[tuple[str, str], int] = {}
    for key, tensor in state.items():
        if not key.endswith("_start"):
            part = "unet" if key.startswith("unet.") else "text_encoders"
            side = "up" if ".lora_B." in key or key.endswith("magnitude_vector") else "down"
            of_state[part, side] = of_state.get((part, side), 0) + tensor.numel()
    own = {}
    for number, group in enumerate(groups):
        kept = [trainable.member.trimmed(number, parameter) for parameter in group.parameters]
        own[group.part, group.side] = sum(parameter.numel() for parameter in kept)
    assert own == of_state


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_is_trained_with_and_without_checkpointing(tiny_model: Model, kind: str):
    found = []
    for checkpointing in (False, True):
        with attached(tiny_model, KINDS[kind], 0, checkpointing=checkpointing) as trainable:
            randomise(trainable)
            found.append(gradients(trainable))
    assert all(gradient.abs().max() > 0 for gradient in found[0])
    for plain, checkpointed in zip(*found, strict=True):
        torch.testing.assert_close(checkpointed, plain, rtol=1e-4, atol=1e-5)


def test_checkpointing_computes_activations_again(tiny_model: Model):
    resnet = base_of(tiny_model).unet.up_blocks[-1].resnets[0]
    calls: list[int] = []
    # Before, not after: computing again stops as soon as it has what the backward pass needs.
    handle = resnet.register_forward_pre_hook(lambda *_: calls.append(1))
    for checkpointing in (False, True):
        with attached(tiny_model, ADAPTER, 0, checkpointing=checkpointing) as trainable:
            gradients(trainable)
    handle.remove()
    assert len(calls) == 1 + 2


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_dropout_acts_in_training_alone(tiny_model: Model, kind: str):
    with attached(tiny_model, WHOLE[kind], 0) as trainable:
        randomise(trainable)
        drawn = []
        for seed in (1, 1, 2):
            drawn.append(trainable.predict(*inputs(3), dropout_seeds=[seed]).detach())
        assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
        with torch.no_grad():
            fixed = [trainable.predict(*inputs(3)) for _ in range(2)]
        state = trainable.state_dict()
    assert torch.equal(fixed[0], fixed[1]) and not torch.equal(fixed[0], drawn[0])
    without = LowRankAdapter(kind=kind, rank=2, targets=EVERYWHERE, text_encoders=True)
    with torch.no_grad(), attached(tiny_model, without, 0) as trainable:
        trainable.load_state_dict(state)
        torch.testing.assert_close(trainable.predict(*inputs(3)), fixed[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_state_goes_round(tiny_model: Model, kind: str):
    with torch.no_grad():
        with attached(tiny_model, KINDS[kind], 0) as trainable:
            fresh = trainable.predict(*inputs(3))
            randomise(trainable)
            state = trainable.state_dict()
            expected = trainable.predict(*inputs(3))
            assert not torch.equal(fresh, expected)
        with attached(tiny_model, KINDS[kind], 7) as trainable:
            trainable.load_state_dict(state)
            assert torch.equal(trainable.predict(*inputs(3)), expected)
            for parameter in parameters_of(trainable):
                parameter.zero_()
            assert not any((tensor == 0).all() for tensor in state.values())  # a copy
            state["unet.nothing"] = torch.zeros(1)
            with pytest.raises(AssertionError, match="other modules"):
                trainable.load_state_dict(state)


def test_captions_are_encoded_once_where_the_encoders_are_frozen(tiny_model: Model):
    calls: list[int] = []
    handle = base_of(tiny_model).text_encoder_2.register_forward_hook(lambda *_: calls.append(1))
    noise, timesteps, _, time_ids = inputs(2)
    for adapter, expected in ((ADAPTER, 2), (LowRankAdapter(text_encoders=True), 4), (TextualInversion(), 4)):
        calls.clear()
        with attached(tiny_model, adapter, 0) as trainable:
            for captions in (["a fox", "a fox"], ["a cat", "a fox"], ["a cat", "a cat"]):
                trainable.predict(noise, timesteps, captions, time_ids)
        assert len(calls) == expected
    handle.remove()


def test_each_row_has_its_own_caption_and_size(tiny_model: Model):
    noise, timesteps, captions, time_ids = inputs(3)
    with torch.no_grad(), attached(tiny_model, ADAPTER, 0) as trainable:
        together = trainable.predict(noise, timesteps, captions, time_ids)
        for row in range(3):
            one = slice(row, row + 1)
            alone = trainable.predict(noise[one], timesteps[one], captions[one], time_ids[one])
            torch.testing.assert_close(together[one], alone, rtol=1e-4, atol=1e-5)
        swapped = trainable.predict(noise, timesteps, captions[::-1], time_ids)
        assert not torch.allclose(swapped[0], together[0], atol=1e-4)
        moved = trainable.predict(noise, timesteps, captions, time_ids.flip(0))
        assert not torch.allclose(moved[0], together[0], atol=1e-4)


def test_compiled_packs_are_what_they_are_uncompiled(monkeypatch: pytest.MonkeyPatch, tiny_model: Model):
    """Also where only the layers that are acted on differ: between blocks, or from pack to pack."""
    graphs = []

    def noted(graph: torch.fx.GraphModule, _inputs: object) -> Any:  # nothing is compiled: that takes minutes
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=noted))
    blocks = [m for m in base_of(tiny_model).unet.modules() if isinstance(m, BasicTransformerBlock)]
    fewer = LowRankAdapter(rank=4, alpha=8.0, blocks=("mid_block",))
    packs = ((fewer, False), (ADAPTER, False), (ADAPTER, True), (WHOLE["dora"], False), (fewer, False))
    for adapter, checkpointing in packs:
        found = []
        for compiled in (False, True):
            graphs.clear()
            how = {"checkpointing": checkpointing, "compiled": compiled}
            with attached(tiny_model, adapter, 0, **how) as trainable:
                randomise(trainable)
                found.append(gradients(trainable))
                if compiled and adapter is ADAPTER:
                    known = len(graphs)
                    assert 0 < known < len(blocks), "blocks that are alike have one graph"
                    trainable.predict(*inputs(3))
                    assert len(graphs) == known
            assert bool(graphs) == compiled
        for plain, same in zip(*found, strict=True):
            assert (same - plain).norm() <= 1e-3 * plain.norm()  # sums in another order


@pytest.mark.parametrize("kind", ["attention", "word"])
def test_it_can_be_trained_after_drawing(tiny_model: Model, kind: str):
    """Drawing runs in inference mode, and what it caches must not poison autograd."""
    row = Row(prompt="(wrong)++", negative="wrong", seed=0, guidance=5.0)
    tiny_model.generate([row], SamplerSettings(steps=2, refiner_start=None))
    noise, timesteps, _, time_ids = inputs(1)
    for caption in ("wrong", "(wrong)++", "(wrong)1.5"):
        with attached(tiny_model, KINDS[kind], 0) as trainable:
            trainable.predict(noise, timesteps, [caption], time_ids).sum().backward()


@pytest.mark.parametrize("kind", ["attention", "word"])
def test_drawing_inside_attach_is_a_mistake(tiny_model: Model, kind: str):
    row = Row(prompt="a fox", negative="", seed=0, guidance=5.0)
    with attached(tiny_model, KINDS[kind], 0):
        with pytest.raises(AssertionError, match="outside attach"):
            tiny_model.generate([row], SamplerSettings(steps=2, refiner_start=None))
        with pytest.raises(AssertionError, match="one pack is trained at a time"):
            tiny_model.attach([Fresh(adapter=ADAPTER, seed=0)]).__enter__()
