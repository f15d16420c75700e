"""Commands on what a sweep has made: `harness report`, `publish`, `export`, `redraw`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from harness.cli.console import out, trial_number

REPORT = "report.html"

app = typer.Typer()

SweepFolder = Annotated[
    str, typer.Argument(help="A finished sweep: WORKSPACE/sweeps/NAME, or its URL.", metavar="FOLDER")
]


@app.command()
def report(
    folder: SweepFolder,
    output: Annotated[
        Path | None, typer.Option(help="Where to write the page; default FOLDER/report.html.")
    ] = None,
) -> None:
    """Write the report of a finished sweep again."""
    from harness.reporting.report import write_report
    from harness.results import load
    from harness.store.workspace import Workspace

    workspace, here = Workspace.of_sweep(folder)
    write_report(load(here), workspace, output or here / REPORT)
    if output is None:
        workspace.upload_sweep(here.name, [REPORT], here=here)
    out.print(f"report: {output or folder.rstrip('/') + '/' + REPORT}")


@app.command()
def publish(
    folder: SweepFolder,
    project: Annotated[str, typer.Option(help="W&B project.")] = "lora-sweep-harness",
    entity: Annotated[str | None, typer.Option(help="W&B entity.")] = None,
    mode: Annotated[
        Literal["offline", "online"], typer.Option(help="offline writes files that `wandb sync` sends.")
    ] = ("offline"),
) -> None:
    """Mirror a finished sweep to Weights & Biases. Publishing twice changes nothing."""
    from harness.config.schema.sweep import WandbTracking
    from harness.reporting.wandb_tracker import make_tracker
    from harness.results import load
    from harness.store.workspace import Workspace

    config = WandbTracking(project=project, entity=entity, mode=mode)
    workspace, here = Workspace.of_sweep(folder)
    make_tracker(config, folder=here).publish(load(here), workspace)
    out.print(f"published to W&B ({mode}): {here / 'wandb'}")


@app.command()
def export(
    folder: SweepFolder,
    trial: Annotated[
        str, typer.Argument(help="The trial's number, or best: the one selected on dev prompts.")
    ] = "best",
    output: Annotated[
        Path | None, typer.Option(help="Where to put the adapter; default FOLDER/export/TRIAL.")
    ] = None,
    layout: Annotated[
        Literal["diffusers", "kohya", "both"],
        typer.Option(help="kohya: the keys that A1111 and ComfyUI read."),
    ] = "both",
    push: Annotated[
        str | None, typer.Option(metavar="OWNER/NAME", help="Push it to this repository of the hub.")
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="With --push: not private.")] = False,
) -> None:
    """Write a trial's adapter with a model card: its scores against the controls, and images."""
    from harness.reporting.export import export_trial
    from harness.results import load
    from harness.store.workspace import Workspace

    number = trial_number(trial)
    workspace, here = Workspace.of_sweep(folder)
    target = output or here / "export" / trial
    export_trial(load(here), workspace, number, folder=target, layout=layout)
    if output is None:
        workspace.upload_folder(here.name, f"export/{trial}", here=target)
    out.print(f"exported: {output or folder.rstrip('/') + '/export/' + trial}", highlight=False)
    if push is not None:
        from harness.reporting.export.export import push as push_to_hub

        out.print(f"pushed: {push_to_hub(target, push, private=not public)}", highlight=False)


@app.command()
def redraw(
    image: Annotated[str, typer.Argument(help="A PNG that harness drew.", metavar="PICTURE.png")],
    output: Annotated[
        Path | None,
        typer.Option(help="Where to write it; default PICTURE-again.png beside it."),
    ] = None,
    workspace: Annotated[
        str | None,
        typer.Option("--workspace", "-w", help="Where its adapters are; default: the one it lies in."),
    ] = None,
) -> None:
    """Draw an image again from what its file says, and compare the pixels."""
    from harness.diffusion.sampling.redraw import redraw as draw_again
    from harness.store.workspace import Workspace

    inside, here = Workspace.of_image(image)
    target = output or (Path() if inside else here.parent) / f"{here.stem}-again.png"
    result = draw_again(here, workspace=workspace or inside, output=target)
    if result.equal:
        out.print(f"{target}: the same pixels as {image}", highlight=False)
    elif result.up_to_rounding:
        out.print(f"{target}: {image} up to rounding, by at most {result.difference} of 255", highlight=False)
    else:
        others = [f"{name} {then} then, {now} now" for name, (then, now) in result.versions.items()]
        out.print(f"{target}: differs from {image} by up to {result.difference} of 255", highlight=False)
        out.print(f"  {', '.join(others) or 'with the same versions'}", highlight=False)
