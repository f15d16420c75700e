"""What a trial is judged by while the sweep is running: a paired contrast, or the loss at fixed noise."""

from typing import Annotated, Literal

from pydantic import Field

from harness.spec.base import Frozen, Name


class ContrastObjective(Frozen):
    """Adapter arm − control on a metric: the mean over dev prompts of the mean over each prompt's pairs."""

    kind: Literal["contrast"] = "contrast"
    metric: Annotated[Name | None, Field(description="null: analysis.primary")] = None
    arm: Annotated[
        Name | None, Field(description="null: the first arm in which the trial's own adapter acts")
    ] = None
    control: Annotated[Name | None, Field(description="null: analysis.control")] = None


class LossObjective(Frozen):
    """The loss on held-out pictures at fixed noise; needs training.holdout. Lower is better."""

    kind: Literal["validation_loss"]


class ProbeObjective(ContrastObjective):
    """A contrast on the first dev prompts and seeds alone, drawn each time that a run is looked at."""

    prompts: Annotated[int, Field(ge=1, description="of the dev prompts, the first so many")] = 4
    seeds: Annotated[int, Field(ge=1, description="of the sweep's seeds, the first so many")] = 1


LookObjective = Annotated[ProbeObjective | LossObjective, Field(discriminator="kind")]
