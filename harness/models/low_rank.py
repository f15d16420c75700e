"""Fresh low-rank adapters of several trials on one model: where they act, how they start, their layers."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from harness.models.adapter_file import TEXT_BODY
from harness.models.encoding import text_body
from harness.models.fresh import fresh_state
from harness.models.grouped import RANKS
from harness.models.pack import Block, PackedMember, Place
from harness.models.pack_layers import PackedLayer, Pass
from harness.models.targets import text_targets, unet_targets
from harness.models.textual_inversion import ENCODERS
from harness.spec.adapter import LowRankAdapter


@dataclass(frozen=True, kw_only=True, eq=False)
class _Site:
    """A module that some of the trials' adapters act on."""

    prefix: str  # of the keys of its tensors
    parent: Any
    name: str  # of the module in its parent
    module: Any
    trials: frozenset[int]


@contextmanager
def low_rank(
    pipeline: Any, adapters: Sequence[LowRankAdapter], seeds: Sequence[int | None], current: Pass
) -> Iterator[list[PackedMember]]:
    """Attach them, trial k's started from `seeds[k]`, or zero without; on leaving, the base is itself."""
    sites = _sites(pipeline, adapters)
    device = pipeline.unet.device
    block = Block(_places(sites, adapters), len(adapters), device)
    members = []
    for trial, (adapter, seed) in enumerate(zip(adapters, seeds, strict=True)):
        member = PackedMember(block, trial, adapter)
        if seed is not None:
            own = {site.prefix: site.module for site in sites if trial in site.trials}
            member.load_state_dict(fresh_state(own, adapter, seed))
        members.append(member)
    # A row of the block is no block of its own, and autograd warns that adding to it could be faster.
    warnings.filterwarnings("ignore", message="grad and param do not obey the gradient layout contract")
    with ExitStack() as replaced:
        for site in sites:
            dora = [trial in site.trials and a.kind == "dora" for trial, a in enumerate(adapters)]
            layer = PackedLayer(
                site.module,
                current=current,
                adapters=adapters,
                name=site.prefix,
                down=block.layered[f"{site.prefix}.lora_A.weight"],
                up_KRO=block.layered[f"{site.prefix}.lora_B.weight"],
                magnitude_KO=block.layered.get(f"{site.prefix}.lora_magnitude_vector"),
                is_dora_K=torch.tensor(dora, device=device),
            )
            replaced.callback(setattr, site.parent, site.name, site.module)
            setattr(site.parent, site.name, layer)
        yield members


def _sites(pipeline: Any, adapters: Sequence[LowRankAdapter]) -> list[_Site]:
    """The UNet's, then the text encoders', by name. Raises ModelError for blocks that name nothing."""
    trials: dict[str, set[int]] = {}
    parents: dict[str, Any] = {}
    for trial, adapter in enumerate(adapters):
        named = [("unet.", pipeline.unet, unet_targets(pipeline.unet, adapter))]
        if adapter.text_encoders:
            for _, encoder in ENCODERS:
                body = text_body(getattr(pipeline, encoder))
                names = text_targets(body, whole=encoder == "text_encoder_2")
                named.append((f"{encoder}.{TEXT_BODY}", body, names))
        for prefix, root, names in named:
            for name in names:
                trials.setdefault(f"{prefix}{name}", set()).add(trial)
                parents[f"{prefix}{name}"] = root.get_submodule(name.rpartition(".")[0])
    order = sorted(trials, key=lambda prefix: (not prefix.startswith("unet."), prefix))
    return [_site(prefix, parents[prefix], frozenset(trials[prefix])) for prefix in order]


def _site(prefix: str, parent: Any, trials: frozenset[int]) -> _Site:
    name = prefix.rpartition(".")[2]
    return _Site(prefix=prefix, parent=parent, name=name, module=parent.get_submodule(name), trials=trials)


def _places(sites: Sequence[_Site], adapters: Sequence[LowRankAdapter]) -> list[Place]:
    """One after the other: of each part all A, then all B and magnitudes."""
    places: list[Place] = []
    for part in ("unet", "text_encoders"):
        of_part = [site for site in sites if site.prefix.startswith("unet.") == (part == "unet")]
        for kinds in (("A",), ("B", "magnitude")):
            for site in of_part:
                for kind in kinds:
                    trials = site.trials
                    if kind == "magnitude":
                        trials = frozenset(trial for trial in trials if adapters[trial].kind == "dora")
                    if trials:
                        places.append(_place(site, part, kind, trials, adapters, places))
    return places


def _place(
    site: _Site,
    part: Any,
    kind: Any,
    trials: frozenset[int],
    adapters: Sequence[LowRankAdapter],
    before: Sequence[Place],
) -> Place:
    widest = max(adapter.rank for adapter in adapters)
    rank = widest + -widest % RANKS
    outputs, *inputs = site.module.weight.shape
    name, shape = {
        "A": ("lora_A.weight", (rank, *inputs)),
        "B": ("lora_B.weight", (rank, outputs)),
        "magnitude": ("lora_magnitude_vector", (outputs,)),
    }[kind]
    return Place(
        key=f"{site.prefix}.{name}",
        part=part,
        kind=kind,
        start=before[-1].end if before else 0,
        shape=shape,
        trials=trials,
        of_convolution=len(inputs) > 1,
    )
