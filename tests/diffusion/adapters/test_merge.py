"""Merging against PEFT's own `add_weighted_adapter`."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from harness.config.schema.evaluation import MergeConfig
from harness.diffusion.adapters.adapter import Adapter, Embedding, LowRankLayer, RotatedLayer
from harness.diffusion.adapters.merge import merged
from harness.errors import ModelError
from tests.diffusion.adapters.adapters import products

RANK, ALPHAS = 3, {"one": 6.0, "two": 1.5, "three": 3.0}
LINEAR = MergeConfig(method="linear")


class Small(nn.Module):
    """Layers in the order of their names, in which both ways draw DARE's numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(4, 6, 3)
        self.b = nn.Linear(6, 5)


def example() -> tuple[Any, dict[str, Adapter]]:
    """A PEFT model with three adapters, and the same adapters as the harness has them."""
    torch.manual_seed(0)
    model: Any = None
    for name, alpha in ALPHAS.items():
        config = LoraConfig(r=RANK, lora_alpha=alpha, target_modules=["a", "b"], init_lora_weights=False)
        if model is None:
            model = get_peft_model(Small(), config, adapter_name=name)
        else:
            model.add_adapter(name, config)
    layers = {"a": model.base_model.model.a, "b": model.base_model.model.b}
    adapters = {
        name: Adapter(
            unet={
                layer: LowRankLayer(
                    down=module.lora_A[name].weight.detach(),
                    up=module.lora_B[name].weight.detach(),
                    scale=alpha / RANK,
                )
                for layer, module in layers.items()
            }
        )
        for name, alpha in ALPHAS.items()
    }
    return model, adapters


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (0.5, -2.0, 0.0)])
@pytest.mark.parametrize(
    ("merge", "method"),
    [
        (LINEAR, "linear"),
        (MergeConfig(method="ties", density=0.4), "ties"),
        (MergeConfig(method="dare", density=0.6, seed=7), "dare_linear"),
    ],
)
def test_is_pefts_weighted_adapter(
    monkeypatch: pytest.MonkeyPatch, merge: MergeConfig, method: str, weights: tuple[float, ...]
):
    model, adapters = example()
    before = torch.get_rng_state()
    ours = merged(list(zip(adapters.values(), weights, strict=True)), merge)
    assert torch.equal(before, torch.get_rng_state())
    # PEFT's fresh adapter draws numbers before the merge does, so the generator is seeded between the two.
    monkeypatch.setattr("peft.tuners.lora.model._freeze_adapter", lambda *_: torch.manual_seed(7))
    model.add_weighted_adapter(
        list(adapters), list(weights), "merged", combination_type=method, density=merge.density
    )
    for name, module in (("a", model.base_model.model.a), ("b", model.base_model.model.b)):
        layer = products(ours.unet)[name]
        torch.testing.assert_close(layer.down, module.lora_A["merged"].weight.detach())
        torch.testing.assert_close(layer.up, module.lora_B["merged"].weight.detach())
        assert layer.scale == module.scaling["merged"] == 1.0


def test_dare_depends_on_its_seed_alone():
    _, adapters = example()
    pair = [(adapter, 1.0) for adapter in adapters.values()]
    first, again, other = (
        products(merged(pair, MergeConfig(method="dare", density=0.5, seed=seed)).unet)["a"].down
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


class TestWhatCannotBeMerged:
    @pytest.fixture
    def one(self) -> Adapter:
        return example()[1]["one"]

    def refused(self, one: Adapter, other: Adapter, match: str) -> None:
        with pytest.raises(ModelError, match=match):
            merged([(one, 1.0), (other, 1.0)], LINEAR)

    def test_other_layers(self, one: Adapter):
        self.refused(one, replace(one, unet={"a": one.unet["a"]}), r"same layers.*unet\.b")
        self.refused(one, replace(one, text_encoder=one.unet), r"same layers.*text_encoder\.a")

    def test_another_rank(self, one: Adapter):
        layers = {
            name: replace(layer, down=layer.down[:2], up=layer.up[:, :2])
            for name, layer in products(one.unet).items()
        }
        self.refused(one, replace(one, unet=layers), "same rank")

    def test_oft(self, one: Adapter):
        turned = {"a": RotatedLayer(turn_kbb=torch.zeros(1, 5, 5), side="inputs")}
        self.refused(one, replace(one, unet={**one.unet, **turned}), "OFT cannot be merged")

    def test_dora(self, one: Adapter):
        layers = {
            name: replace(layer, magnitude_O=torch.ones(5)) for name, layer in products(one.unet).items()
        }
        self.refused(one, replace(one, unet=layers), "DoRA")

    def test_words(self, one: Adapter):
        vectors = (torch.ones(1, 2), torch.ones(1, 2))
        words = Adapter(embedding=Embedding(word="wrong", learnt_ND=vectors, start_ND=None))
        self.refused(one, words, "textual inversion cannot be merged")
