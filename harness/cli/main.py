"""The command line: parse, call one function, print. `harness --help` shows examples."""

import io
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from harness import __version__
from harness.cli import outputs, power, status, store
from harness.cli.check import print_inventory, print_plan, print_scheduler, print_search
from harness.cli.console import err, out, print_contrasts, print_verdict, styled, verdict_as_json
from harness.config.loading.load import load_plan
from harness.config.plan.plan import Plan, Trial, expand
from harness.errors import ConfigError, HarnessError, SweepIncomplete

if TYPE_CHECKING:
    from harness.store.workspace import Workspace


EXAMPLES = """
Examples:\n
  harness check sweeps/quickstart.yaml\n
  harness run sweeps/quickstart.yaml --workspace runs\n
  harness run sweeps/sdxl_wrong.yaml --workspace /shared/runs --address auto\n
  harness run sweeps/quickstart.yaml --set axes.adapter.rank='[4,8,16]'\n
  harness power sweeps/quickstart.yaml --effect 0.3 --pilot runs/sweeps/quickstart\n
  harness trial sweeps/quickstart.yaml 3 --workspace runs\n
  harness status /shared/runs/sweeps/sdxl_wrong\n
  harness open runs/sweeps/quickstart\n
  harness report runs/sweeps/quickstart --bundle shared --zip\n
  harness grid runs/sweeps/quickstart --x adapter.rank --y prompt --out grid.png\n
  harness votes add runs/sweeps/quickstart votes.json\n
  harness publish runs/sweeps/quickstart --report --mode online\n
  harness export runs/sweeps/quickstart best --layout kohya\n
  harness redraw runs/images/0123abcd/4567ef/89ab.png\n
  harness store ls --workspace runs
"""

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Sweeps of adapters trained on bad images and used as the negative prompt." + EXAMPLES,
)

app.add_typer(power.app)
app.add_typer(status.app)
app.add_typer(outputs.app)
app.add_typer(outputs.votes_app, name="votes")
app.add_typer(store.app, name="store")

SweepFile = Annotated[Path, typer.Argument(help="The sweep's YAML.", metavar="SWEEP.yaml")]
Where = Annotated[
    str,
    typer.Option(
        "--workspace",
        "-w",
        help="The store, shared by all its sweeps: a folder, or s3://BUCKET/PREFIX.",
        metavar="FOLDER",
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Replace one value of the YAML, as in axes.adapter.rank='[4,8]'."
    ),
]


@app.command()
def check(
    sweep: SweepFile,
    workspace: Where = "workspace",
    override: Overrides = None,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Add the remaining time, from this store's timings.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
) -> None:
    """Print the plan of a sweep and its cost; makes nothing."""
    from harness.engine.accounting.estimate import estimated, workers
    from harness.engine.accounting.inventory import confirmation_images, described, encodings, inventory
    from harness.engine.completion import confirmed, marked
    from harness.engine.early_stopping import Decisions, as_decided
    from harness.engine.stages.context import Count
    from harness.engine.stages.scoring import listed
    from harness.metrics import metric_fingerprint
    from harness.results.study import Study

    plan, store = _planned(sweep, workspace, override)
    for metric in plan.sweep.metrics:
        metric_fingerprint(metric)  # says what is missing of its weights
    decisions = Decisions(plan.sweep, store)
    left = as_decided(plan, decisions)
    with listed(plan, store):
        counts = inventory(left, store)
        encoded = encodings(left, store, counts)
        times = estimated(left, store, counts) if estimate else None
    finished = marked(plan, store)
    if as_json:
        timed = {"estimate": asdict(times)} if times else {}
        state = {"stopped_runs": len(decisions.stops), "finished": finished is not None}
        about = described(plan, {**counts, **encoded}, workers(plan.sweep.compute))
        out.print_json(json.dumps({**about, **state, **timed}))
        return
    print_plan(plan, workers(plan.sweep.compute))
    print_search(plan)
    print_scheduler(plan, len(decisions.stops))
    power.print_design(plan.sweep, None if finished is None else Study(finished))
    images = confirmation_images(plan) if finished is None else confirmed(plan, finished)
    confirmation = Count(asked=images, missing=images if finished is None else 0)
    print_inventory(counts, encoded, confirmation, times)


@app.command()
def run(
    sweep: SweepFile,
    *,
    workspace: Where = "workspace",
    override: Overrides = None,
    executor: Annotated[
        Literal["ray", "local"],
        typer.Option(help="ray: workers through Ray Tune; local: a loop in this process."),
    ] = "ray",
    address: Annotated[
        str | None,
        typer.Option(
            help="Ray cluster: auto (started on this machine) or HOST:PORT; default RAY_ADDRESS, else none. "
            "From outside a cluster use ray job submit."
        ),
    ] = None,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="No progress, and of the verdict its headline alone.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the verdict as one JSON object.")] = False,
) -> None:
    """Run a sweep. After an interruption the same command resumes: finished artifacts are reused."""
    from harness.cli.progress import Display
    from harness.cli.session import carry_out, interruptible
    from harness.engine.executors import make_executor
    from harness.store.workspace import Workspace

    if executor == "local" and address is not None:
        raise ConfigError(
            "--address is of a Ray cluster, and --executor local uses none; leave one of them out"
        )
    plan = load_plan(sweep, override or (), download=True)
    display = Display(err, quiet=quiet)
    with interruptible(display) as stop:
        workers = make_executor(executor, address=address)
        finished, next_steps = carry_out(display, stop, plan=plan, address=workspace, workers=workers)
    folder = f"{Workspace(workspace).address}/sweeps/{plan.sweep.name}"
    failed = {one.task.name: one.reason or "" for one in finished.outcomes if one.failed and not one.skipped}
    if as_json:
        out.print(verdict_as_json(finished.results, folder, next_steps, failed))
    else:
        if not finished.outcomes and not quiet:
            out.print("Nothing to train, generate or score: the store has all of it.")
        print_verdict(finished.results, folder, next_steps, quiet=quiet)
    if failed:
        lines = "".join(f"\n  {name}: {reason}" for name, reason in failed.items())
        raise SweepIncomplete(
            f"{len(failed)} of {len(finished.outcomes)} tasks failed; run again to retry them:{lines}"
        )


@app.command()
def trial(
    sweep: SweepFile,
    index: Annotated[int, typer.Argument(help="Number of the trial, as in `harness check`.", min=0)],
    workspace: Where = "workspace",
    override: Overrides = None,
) -> None:
    """Run one trial in this process, without Ray, and compare it with its controls."""
    from harness.cli.progress import Display
    from harness.cli.session import interruptible
    from harness.engine.accounting.inventory import remaining
    from harness.engine.pipeline import run_trial
    from harness.engine.stages.context import Context

    display = Display(err)
    plan, _ = _planned(sweep, workspace, override)
    chosen = _trial(plan, index)
    with interruptible(display) as stop:
        ctx = Context.of(plan, workspace, display.report, stop=stop)
        ctx.workspace.check_writable()
        results = run_trial(
            plan,
            ctx,
            chosen,
            announce=lambda tasks: display.begin("trial", remaining(plan, ctx.workspace, tasks)),
        )
    print_contrasts(results, chosen.trial_id, "dev")


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        out.print(__version__)
        raise typer.Exit


def _planned(sweep: Path, workspace: str, override: Sequence[str] | None) -> "tuple[Plan, Workspace]":
    """The plan of a sweep, with the points and guidances that its searches tried in earlier calls."""
    from harness.engine.search import with_remembered
    from harness.store.workspace import Workspace

    store = Workspace(workspace)
    plan = load_plan(sweep, override or ())
    remembered = with_remembered(plan.sweep, store)
    return (plan if remembered is plan.sweep else expand(remembered)), store


def _trial(plan: Plan, index: int) -> Trial:
    if index >= len(plan.trials):
        raise ConfigError(
            f"there is no trial {index}; allowed: 0 to {len(plan.trials) - 1} (see harness check)"
        )
    return plan.trials[index]


def main() -> None:
    """Entry point: a user's mistake is one clear line and exit code 2, never a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal without a letter shows its escape
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except HarnessError as error:
        err.print(styled("error:", "bold red"), str(error))
        sys.exit(error.exit_code)
