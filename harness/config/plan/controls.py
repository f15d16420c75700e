"""The arms that a sweep's `controls` adds to those given by hand."""

from collections.abc import Iterator, Sequence
from typing import Any

from harness.config.schema.evaluation import PROMPT, ArmAdapter, ArmConfig, Controls, SamplerConfig
from harness.config.schema.recipe import ShamConfig
from harness.errors import ConfigError

NEON_SCALE = -1.0  # in the middle of the paper's range


def with_controls(
    arms: Sequence[ArmConfig], controls: Controls, sampler: SamplerConfig
) -> tuple[ArmConfig, ...]:
    """The arms of a sweep with those that `controls` adds: controls before them, rivals after.

    - minimal: no negative prompt, and each arm without the trial's adapter, at its own guidance (placebo);
    - standard: also a LoRA trained alike on clean images in place of the trial's own (sham);
    - full: also the trial's adapter subtracted from the weights (Neon, 2025), and on the negative branch
      under the image's own prompt (autoguidance, Karras et al. 2024): rivals, which use the trial's own.

    An arm that is there under another name is not added again, and a `sham` given by hand, of words or a
    recipe of its own, stays in place of the added one. Raises ConfigError where another arm given by hand
    has the name of one that is added, and is not the same.
    """
    own = [arm for arm in arms if not arm.is_control]
    if not own:  # the sweep's own validation says what is wrong
        return tuple(arms)
    first = next((arm for arm in own if all(adapter.scale == 1 for adapter in arm.adapters)), own[0])
    rivals = list(_rivals(first)) if controls == "full" else []
    wanted = [ArmConfig(name="baseline"), *_placebos([*own, *rivals], sampler)]
    if controls != "minimal" and not any(_is_sham(arm) for arm in arms):
        wanted.append(_sham(first))

    def is_there(arm: ArmConfig) -> bool:
        return any(_acts_as(arm, sampler) == _acts_as(other, sampler) for other in arms)

    before, after = (
        [arm.model_copy(update={"added": True}) for arm in group if not is_there(arm)]
        for group in (wanted, rivals)
    )
    taken = {arm.name for arm in arms}
    for arm in [*before, *after]:
        if arm.name in taken:
            raise ConfigError(
                f"arms.{arm.name}: differs from the arm of this name that controls: {controls} adds; give it "
                "another name, or leave it out"
            )
    return (*before, *arms, *after)


def _placebos(arms: Sequence[ArmConfig], sampler: SamplerConfig) -> Iterator[ArmConfig]:
    """Each arm without the trial's own adapter, each distinct one once.

    Where an arm's negative is the image's own prompt there is none: its two branches would be alike.
    """
    first: dict[str, ArmConfig] = {"baseline": ArmConfig(name="baseline")}
    seen = [_acts_as(first["baseline"], sampler)]
    for arm in arms:
        rest = tuple(adapter for adapter in arm.adapters if not adapter.is_own)
        bare = arm.model_copy(
            update={
                "name": "placebo",
                "family": None,
                "params": {},
                "adapters": rest,
                "merge": arm.merge if len(rest) > 1 else None,
            }
        )
        if arm.negative.strip() == PROMPT or _acts_as(bare, sampler) in seen:
            continue
        seen.append(_acts_as(bare, sampler))
        kind = "placebo" if arm.negative or rest else "baseline"
        yield _told_apart(bare, first.setdefault(kind, bare), kind, arm.name, sampler)


def _told_apart(
    arm: ArmConfig, first: ArmConfig, kind: str, source: str, sampler: SamplerConfig
) -> ArmConfig:
    """The arm under the name of its kind; beside the first, named after its guidance or its source."""
    if arm is first:
        return arm
    scale = sampler.guidance_of(arm).scale
    alike = _acts_as(arm.model_copy(update={"guidance": None}), sampler) == _acts_as(
        first.model_copy(update={"guidance": None}), sampler
    )
    if not alike:
        return arm.model_copy(update={"name": f"{kind}-{source}"[:64]})
    named = {"name": f"{kind}-guidance-{scale:g}", "family": kind, "params": {"guidance": scale}}
    return arm.model_copy(update=named)


def _sham(arm: ArmConfig) -> ArmConfig:
    """The arm with an adapter trained alike on clean images in place of the trial's own."""
    adapters = tuple(
        ArmAdapter(sham=ShamConfig(), **_action(adapter)) if adapter.is_own else adapter
        for adapter in arm.adapters
    )
    return arm.model_copy(update={"name": "sham", "family": None, "params": {}, "adapters": adapters})


def _rivals(arm: ArmConfig) -> Iterator[ArmConfig]:
    """The arm's adapters used in the two other ways."""
    rest = [adapter for adapter in arm.adapters if not adapter.is_own]
    own = next(adapter for adapter in arm.adapters if adapter.is_own)
    for name, negative, changed in (
        ("neon", "", {"scale": NEON_SCALE, "branch": "both"}),
        ("autoguidance", PROMPT, {"scale": 1.0, "branch": "negative"}),
    ):
        update: dict[str, Any] = {"name": name, "family": None, "params": {}, "merge": None}
        adapters = (*rest, own.model_copy(update=changed))
        yield arm.model_copy(update={**update, "negative": negative, "adapters": adapters})


def _action(adapter: ArmAdapter) -> dict[str, Any]:
    return {"scale": adapter.scale, "branch": adapter.branch, "weights": adapter.weights}


def _is_sham(arm: ArmConfig) -> bool:
    trained = any(adapter.is_trained_apart for adapter in arm.adapters)
    return arm.name == "sham" and arm.is_control and trained


def _acts_as(arm: ArmConfig, sampler: SamplerConfig) -> tuple[Any, ...]:
    """What decides an arm's images: equal for arms of which one is enough."""
    return arm.negative, sampler.guidance_of(arm), arm.match, arm.adapters, arm.merge, arm.post
