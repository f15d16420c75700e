"""Commands on a sweep: `harness report`, `grid`, `publish`, `export`, `redraw`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from harness.cli.console import out, print_next_steps, trial_number
from harness.errors import ConfigError

if TYPE_CHECKING:
    from harness.results import Results
    from harness.store.workspace import Workspace

app = typer.Typer()
votes_app = typer.Typer(no_args_is_help=True, help="Blind votes on pairs of images, from the report page.")

SweepFolder = Annotated[
    str, typer.Argument(help="A finished sweep: WORKSPACE/sweeps/NAME, or its URL.", metavar="FOLDER")
]


@app.command()
def report(
    folder: SweepFolder,
    output: Annotated[Path | None, typer.Option(help="File of the page; default FOLDER/report.html.")] = None,
    bundle: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write the page and every original image into this folder."),
    ] = None,
    zipped: Annotated[bool, typer.Option("--zip", help="With --bundle: one archive, DIR.zip.")] = False,
) -> None:
    """Write the report of a sweep; of one that is still running, what there is, without a verdict."""
    from harness.errors import ConfigError
    from harness.reporting.report import write_bundle, write_report
    from harness.store.workspace import REPORT, Workspace

    if zipped and bundle is None:
        raise ConfigError("--zip needs --bundle DIR; without it the report is one file already")
    if bundle is not None and output is not None:
        raise ConfigError("give --output (one page) or --bundle (a folder with the images), not both")
    workspace, here = Workspace.of_sweep(folder)
    results = _finished_or_growing(workspace, here)
    if bundle is not None:
        out.print(f"report: {write_bundle(results, workspace, bundle, zipped=zipped)}")
        return
    write_report(results, workspace, output or here / REPORT)
    if output is None:
        workspace.upload_sweep(here.name, [REPORT], here=here)
    out.print(f"report: {output or folder.rstrip('/') + '/' + REPORT}")


def _finished_or_growing(workspace: "Workspace", here: Path) -> "Results":
    """The tables of a sweep's folder; of one that has none yet, those of what the store has so far."""
    from harness.results import load
    from harness.results.tables import SWEEP

    if here.is_dir() and not (here / SWEEP).is_file():
        from harness.engine.collect import so_far

        found = so_far(workspace, here.name)
        if found is not None:
            return found
    return load(here)


@app.command()
def grid(
    folder: SweepFolder,
    *,
    x: Annotated[str | None, typer.Option(help="Columns: axis, arm, arm.scale, trial, prompt, seed.")] = None,
    y: Annotated[str | None, typer.Option(help="Rows; default: the next axis.")] = None,
    panels: Annotated[str | None, typer.Option(help="Panels below each other.")] = None,
    prompt: Annotated[
        str | None, typer.Option(help="Text of the prompt; default: the median dev pair's.")
    ] = None,
    seed: Annotated[str | None, typer.Option(help="Default: the median dev pair's.")] = None,
    arm: Annotated[str | None, typer.Option(help="Arm, or family of arms; default: the verdict's.")] = None,
    at: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Hold another dimension, as adapter.rank=8 or arm.scale=0.5."),
    ] = None,
    score: Annotated[str | None, typer.Option(help="Metric below the images; default: the primary.")] = None,
    control: Annotated[str | None, typer.Option(help="Control of the differences.")] = None,
    size: Annotated[int, typer.Option(help="Pixels of an image's longer side.", min=48, max=2048)] = 192,
    output: Annotated[Path, typer.Option("--out", help="The PNG.")] = Path("grid.png"),
) -> None:
    """Show images of a sweep as a grid: any axis, arm, prompt or seed as columns, rows and panels."""
    from harness.errors import ConfigError, WorkspaceError
    from harness.reporting.report.sheet import View, draw_grid
    from harness.results.study import Study
    from harness.store.workspace import Workspace

    held = {key: value for key, value in {"prompt": prompt, "seed": seed, "arm": arm}.items() if value}
    for entry in at or ():
        key, found, value = entry.partition("=")
        if not found:
            raise ConfigError(f"--at {entry}: give KEY=VALUE, as --at adapter.rank=8")
        held[key] = value
    workspace, here = Workspace.of_sweep(folder)
    view = View(x=x, y=y, panels=panels, at=held, metric=score, control=control, size=size)
    picture, about = draw_grid(Study(_finished_or_growing(workspace, here)), workspace, view)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        picture.save(output, format="PNG", pnginfo=about)
    except OSError as error:
        raise WorkspaceError(f"{output} cannot be written: {error.strerror}") from error
    out.print(f"grid: {output}")


@votes_app.command()
def add(
    folder: SweepFolder,
    file: Annotated[Path, typer.Argument(help="Saved from the page.", metavar="votes.json")],
    rater: Annotated[str | None, typer.Option(help="Name in place of the one in the file.")] = None,
) -> None:
    """Take votes in: they are tested like a metric, and shown on the page, which is written again."""
    from harness.reporting.report import write_report
    from harness.results import load
    from harness.results import votes as blind
    from harness.results.format import interval, p_text, signed
    from harness.store.workspace import REPORT, Workspace

    workspace, here = Workspace.of_sweep(folder)
    results = load(here)
    ballot = blind.parse(file, results, rater=rater)
    replaced = blind.add(here, ballot, results.sweep["name"])
    workspace.upload_folder(here.name, blind.VOTES, here=here / blind.VOTES)
    ballots = blind.read(here)
    write_report(results, workspace, here / REPORT)
    workspace.upload_sweep(here.name, [REPORT], here=here)
    out.print(f"{len(ballot.votes)} votes of {ballot.rater}{', in place of earlier ones' * replaced}")
    for c in blind.vote_contrasts(results, ballots):
        numbers = f"{signed(c.difference, 2)} {interval(c.low, c.high, 2)}, p {p_text(c.p)}"
        out.print(f"{c.arm} − {c.control}: {numbers}, {c.n_prompts} {c.split} prompts", highlight=False)
    preferred, identical = blind.noise(ballots)
    if identical:
        out.print(f"a side was preferred in {preferred} of {identical} identical pairs", highlight=False)


@app.command()
def publish(
    folder: SweepFolder,
    project: Annotated[str, typer.Option(help="W&B project.")] = "lora-sweep-harness",
    entity: Annotated[str | None, typer.Option(help="W&B entity.")] = None,
    mode: Annotated[
        Literal["offline", "online"], typer.Option(help="offline writes files that `wandb sync` sends.")
    ] = ("offline"),
    report: Annotated[
        bool, typer.Option("--report", help="A W&B report as well: verdict, panels, images, methods.")
    ] = False,
) -> None:
    """Publish a finished sweep to Weights & Biases. A second call changes nothing."""
    from harness.config.schema.sweep import WandbTracking
    from harness.reporting.wandb_tracker import make_tracker
    from harness.results import load
    from harness.store.workspace import Workspace

    config = WandbTracking(project=project, entity=entity, mode=mode, report=report)
    workspace, here = Workspace.of_sweep(folder)
    published = make_tracker(config, folder=here).publish(load(here), workspace)
    out.print(f"published to W&B ({mode})")
    print_next_steps(published.next_steps)


@app.command()
def export(
    folder: SweepFolder,
    trial: Annotated[
        str, typer.Argument(help="Number of the trial, or best: the one selected on dev prompts.")
    ] = "best",
    output: Annotated[
        Path | None, typer.Option(help="Folder of the adapter; default FOLDER/export/TRIAL.")
    ] = None,
    layout: Annotated[
        Literal["diffusers", "kohya", "both"],
        typer.Option(help="kohya: the keys that A1111 and ComfyUI read."),
    ] = "both",
    push: Annotated[
        str | None,
        typer.Option(metavar="OWNER/NAME", help="Push to this repository of the Hugging Face hub."),
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="With --push: a public repository.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="With --push: list what would be uploaded; send nothing.")
    ] = False,
) -> None:
    """Write a trial's adapter with a model card: its scores against the controls, and images."""
    from harness.reporting.export import export_trial
    from harness.results import load
    from harness.store.workspace import Workspace

    number = trial_number(trial)
    if push is None and (public or dry_run):
        raise ConfigError("--public and --dry-run are of --push OWNER/NAME; give it too")
    workspace, here = Workspace.of_sweep(folder)
    target = output or here / "export" / trial
    export_trial(load(here), workspace, number, folder=target, layout=layout)
    if output is None:
        workspace.upload_folder(here.name, f"export/{trial}", here=target)
    out.print(f"exported: {output or folder.rstrip('/') + '/export/' + trial}")
    if push is not None and dry_run:
        from harness.reporting.export.export import CONFIG, check

        for name in sorted([*check(target), CONFIG]):
            out.print(f"  {(target / name).stat().st_size:>12,} {name}")
        kind = "public" if public else "private"
        out.print(f"would be pushed to {push}, made {kind} if it is not there")
    elif push is not None:
        from harness.reporting.export.export import push as push_to_hub

        out.print(f"pushed: {push_to_hub(target, push, private=not public)}")


@app.command()
def redraw(
    image: Annotated[str, typer.Argument(help="A PNG of harness.", metavar="IMAGE.png")],
    output: Annotated[
        Path | None,
        typer.Option(help="File of the new image; default IMAGE-again.png beside it."),
    ] = None,
    workspace: Annotated[
        str | None,
        typer.Option(
            "--workspace", "-w", help="The workspace of its adapters; default: the one that contains it."
        ),
    ] = None,
) -> None:
    """Generate an image again from its metadata, and compare the pixels."""
    from harness.diffusion.sampling.redraw import redraw as draw_again
    from harness.store.workspace import Workspace

    inside, here = Workspace.of_image(image)
    target = output or (Path() if inside else here.parent) / f"{here.stem}-again.png"
    result = draw_again(here, workspace=workspace or inside, output=target)
    if result.equal:
        out.print(f"{target}: the same pixels as {image}")
    elif result.up_to_rounding:
        out.print(f"{target}: {image} up to rounding, by at most {result.difference} of 255")
    else:
        others = [f"{name} {then} then, {now} now" for name, (then, now) in result.versions.items()]
        out.print(f"{target}: differs from {image} by up to {result.difference} of 255")
        out.print(f"  {', '.join(others) or 'with the same versions'}")
