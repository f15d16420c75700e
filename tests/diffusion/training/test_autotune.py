"""How many runs go together, from two probes."""

import pytest
import torch

from harness.config.schema.adapter import LowRankAdapter
from harness.diffusion.adapters.packed import PackedLayer
from harness.diffusion.models.model import Model
from harness.diffusion.training.autotune import Probe, fitted, runs_at_once
from tests.diffusion.training.runs import make_run

GIB = 2**30


def at_once(one: float, two: float, *, peaks: tuple[int, int] | None = None, free: int | None = None) -> int:
    first, second = peaks or (None, None)
    return fitted(Probe(seconds=one, peak=first), Probe(seconds=two, peak=second), free=free, most=32)


def test_what_fills_the_device_already_is_not_packed() -> None:
    assert at_once(1.0, 2.0) == 1  # the second run costs as much as the first
    assert at_once(1.0, 1.95) == 1
    assert at_once(1.0, 1.85) == 1  # two together would be done 8 % sooner
    assert at_once(1.0, 1.7) == 5  # and these 32 %


def test_the_more_is_shared_the_more_go_together() -> None:
    found = [at_once(1.0, two) for two in (1.9, 1.7, 1.5, 1.3)]
    assert found == sorted(found) and found[0] >= 1 < found[1] < found[3]
    assert at_once(1.0, 1.5) == 10  # a half shared by ten is a tenth of a run's own half each
    assert at_once(1.0, 1.0) == 32 == at_once(1.0, 0.9)  # a second run for nothing: all that there are


def test_no_more_than_the_memory_holds() -> None:
    assert at_once(1.0, 1.1, peaks=(10 * GIB, 17 * GIB), free=40 * GIB) == 1 + 4
    assert at_once(1.0, 1.1, peaks=(10 * GIB, 17 * GIB), free=10 * GIB) == 1
    assert at_once(1.0, 1.1, peaks=(10 * GIB, 10 * GIB), free=10 * GIB) == 32


def test_the_probes_leave_the_model_as_it_was(tiny_model: Model) -> None:
    unet = tiny_model._unet  # type: ignore[attr-defined]
    before = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    random = torch.get_rng_state()
    runs = [make_run(tiny_model, adapter=LowRankAdapter(rank=rank)) for rank in (8, 4)]
    assert 1 <= runs_at_once(runs, tiny_model, checkpointing=False) <= 2
    assert runs_at_once(runs[:1], tiny_model, checkpointing=False) == 1
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(tensor, before[name]) for name, tensor in unet.state_dict().items())
    assert not any(isinstance(module, PackedLayer) for module in unet.modules())


def test_checkpointing_is_probed_too(tiny_model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    attach = type(tiny_model).attach

    def noted(self: Model, fresh: object, *, checkpointing: bool = False, compiled: bool = False) -> object:
        asked.append(checkpointing)
        return attach(self, fresh, checkpointing=checkpointing, compiled=compiled)  # type: ignore[arg-type]

    monkeypatch.setattr(type(tiny_model), "attach", noted)
    runs_at_once([make_run(tiny_model), make_run(tiny_model, seed=1)], tiny_model, checkpointing=True)
    assert asked == [True, True]
