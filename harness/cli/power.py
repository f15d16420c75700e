"""`harness power`: what a sweep's test prompts can find, and how many find an effect."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from harness.cli.console import out
from harness.config.schema.sweep import SweepConfig
from harness.errors import ConfigError
from harness.results.format import count, metric_name, percent, plain

if TYPE_CHECKING:
    from harness.results.power import Components, Design
    from harness.results.study import Study

app = typer.Typer()
TRIED = (12, 24, 48, 96, 192)  # test prompts
UNIT = "standard deviations of a prompt's mean difference"


@app.command()
def power(
    sweep: Annotated[Path, typer.Argument(help="The sweep's YAML.", metavar="SWEEP.yaml")],
    effect: Annotated[
        float | None, typer.Option(min=1e-9, help="True difference of the primary metric to find.")
    ] = None,
    pilot: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER", help="A finished sweep, WORKSPACE/sweeps/NAME: variances from its dev images."
        ),
    ] = None,
    override: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Replace one value of the YAML.")
    ] = None,
) -> None:
    """Print the differences that a sweep can find; without a pilot in standard deviations between prompts."""
    from harness.config.loading.load import load_sweep
    from harness.results import load
    from harness.results.power import Components
    from harness.results.study import Study
    from harness.store.workspace import Workspace

    config = load_sweep(sweep, override or ())
    study = None if pilot is None else Study(load(Workspace.of_sweep(pilot)[1]))
    components = Components(prompt=1.0, noise=None, training=None, prompt_training=None, residual=None)
    if study is not None:
        components = study.pilot_components()
        _print_pilot(study, components)
    confidence, design = planned(config)
    unit = UNIT if study is None else metric_name(study.primary)
    out.print(f"true differences that are found in 80\u202f% of studies, in {unit}:", highlight=False)
    table = Table("test prompts", "difference", box=None, pad_edge=False)
    for prompts in sorted({*TRIED, design.prompts}):
        here = " (this sweep)" if prompts == design.prompts else ""
        table.add_row(f"{prompts}{here}", found(config, components, prompts))
    out.print(table)
    if effect is not None:
        chance = design.power(effect, components, confidence=confidence)
        needed = design.prompts_for(effect, components, confidence=confidence)
        how_many = "no number of prompts finds it" if needed is None else f"{count(needed, 'prompt')} find it"
        out.print(
            f"a true difference of {effect:g}: found by this sweep in {percent(chance)} of studies; "
            f"{how_many} in 80\u202f%",
            highlight=False,
        )
    if study is not None and (margin := study.margin_to_propose()) is not None:
        out.print(
            f"analysis.margin: {margin:.2g} is what a guidance higher by 0.1 does to {study.control}",
            highlight=False,
        )


def planned(sweep: SweepConfig) -> tuple[float, "Design"]:
    """The confidence of a claim among a trial's arms, and what is generated on test prompts for each."""
    from harness.results.power import Design

    arms = sum(not arm.is_control for arm in sweep.arms)
    prompts = sum(prompt.split == "test" for prompt in sweep.prompts)
    confidence = 1 - (1 - sweep.analysis.confidence) / arms
    return confidence, Design(prompts=prompts, noises=len(sweep.seeds))


def found(sweep: SweepConfig, components: "Components", prompts: int) -> str:
    """The difference that so many test prompts find in 80 % of studies, or why none is."""
    from dataclasses import replace

    from harness.results.inference import too_few

    confidence, design = planned(sweep)
    if too_few(prompts, confidence):
        return "nothing: too few for any verdict"
    value = replace(design, prompts=prompts).detectable(components, confidence=confidence)
    return plain(value, 2 if value < 10 else 1)


def print_design(sweep: SweepConfig, pilot: "Study | None") -> None:
    """What the sweep's test prompts can find; in the metric's units where it has run before."""
    from harness.results.power import Components

    _, design = planned(sweep)
    if design.prompts == 0:
        out.print("no test prompts: whatever is found is exploratory", highlight=False)
        return
    of_prompts = Components(prompt=1.0, noise=None, training=None, prompt_training=None, residual=None)
    components = of_prompts
    if pilot is not None:
        try:
            components = pilot.pilot_components()
        except ConfigError:  # too few of its pairs are there
            pilot = None
    unit = f"{UNIT} (in the metric's units: harness power --pilot)"
    if pilot is not None:
        unit = f"in {metric_name(pilot.primary)}, by the variances of its dev images"
    value = found(sweep, components, design.prompts)
    if value.startswith("nothing"):
        out.print(f"{count(design.prompts, 'test prompt')} find {value}", highlight=False)
        return
    out.print(
        f"{count(design.prompts, 'test prompt')} find a true difference of {value} {unit} in 80\u202f% of "
        "studies; less is likely missed",
        highlight=False,
    )


def _print_pilot(study: "Study", components: "Components") -> None:
    prompts, noises, trainings = study.pilot_NST.shape
    parts = {
        "between prompts": components.prompt,
        "between noises of a prompt": components.noise,
        "between trainings": components.training,
        "of trainings between prompts": components.prompt_training,
        "residual": components.residual,
    }
    known = ", ".join(f"{name} {value:.3g}" for name, value in parts.items() if value is not None)
    unknown = ". One training: what another would add is not known" if components.training is None else ""
    out.print(
        f"{study.arm} − {study.control}, {metric_name(study.primary)}, {count(prompts, 'dev prompt')} × "
        f"{count(noises, 'noise')} × {count(trainings, 'training')}: variance {known}{unknown}",
        highlight=False,
    )
