"""The command line: parse, call one function, print. `harness --help` shows examples."""

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from harness import __version__
from harness.errors import HarnessError, SpecError, SweepIncomplete
from harness.spec.expand import Plan, Trial, expand
from harness.spec.load import load_sweep

if TYPE_CHECKING:
    from harness.pipeline import Task
    from harness.results import Results
    from harness.stages import Bench

EXAMPLES = """
Examples:\n
  harness check sweeps/quickstart.yaml\n
  harness run sweeps/quickstart.yaml --workspace runs\n
  harness run sweeps/quickstart.yaml --set axes.adapter.rank='[4,8,16]'\n
  harness trial sweeps/quickstart.yaml 3 --workspace runs\n
  harness report runs/sweeps/quickstart\n
  harness publish runs/sweeps/quickstart --mode online
"""

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Sweeps of adapters trained on bad images and used as the negative prompt." + EXAMPLES,
)
out = Console(soft_wrap=False)
err = Console(stderr=True, soft_wrap=True)

SweepFile = Annotated[Path, typer.Argument(help="The sweep's YAML.", metavar="SWEEP.yaml")]
SweepFolder = Annotated[
    Path, typer.Argument(help="A finished sweep: WORKSPACE/sweeps/NAME.", metavar="FOLDER")
]
Where = Annotated[
    Path, typer.Option("--workspace", "-w", help="Folder of the store, shared by all its sweeps.")
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
    workspace: Where = Path("workspace"),
    override: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan for machines.")] = False,
) -> None:
    """Read a sweep and print what it would cost; nothing is made."""
    from harness.inventory import confirmation_pictures, inventory

    bench = _bench(sweep, workspace, override)
    plan = bench.plan
    counts = inventory(bench)
    if as_json:
        described = {
            "trials": [{"index": t.index, "trial_id": t.trial_id, **t.params} for t in plan.trials],
            "training_runs": len(plan.runs),
            "datasets": len(plan.datasets),
            "confirmation_pictures": confirmation_pictures(plan),
            **{name: asdict(count) for name, count in counts.items()},
        }
        out.print_json(json.dumps(described))
        return
    _print_plan(plan)
    table = Table("", "asked", "in store", "to make", box=None, pad_edge=False)
    for name, count in counts.items():
        table.add_row(name, f"{count.asked}", f"{count.asked - count.missing}", f"{count.missing}")
    table.add_row("confirmation pictures", f"{confirmation_pictures(plan)}", "", "once a trial is selected")
    out.print(table)


@app.command()
def run(
    sweep: SweepFile,
    workspace: Where = Path("workspace"),
    override: Overrides = None,
    executor: Annotated[
        Literal["ray", "local"],
        typer.Option(help="ray: workers through Ray Tune; local: a loop in this process."),
    ] = "ray",
) -> None:
    """Carry a sweep to its end. Run it again after any interruption: what is finished is never made twice."""
    from harness.execution import make_executor
    from harness.pipeline import run_sweep
    from harness.progress import Display

    display = Display(err)
    bench = _bench(sweep, workspace, override, display)
    bench.workspace.check_writable()
    publisher = _Publisher(bench)

    def announce(stage: str, tasks: "Sequence[Task]") -> None:
        display.announce(stage, tasks, bench)

    try:
        with display.live():
            finished = run_sweep(bench, make_executor(executor), announce=announce, publish=publisher)
    except KeyboardInterrupt:
        err.print("\nStopped. What is finished is kept; run the same command to go on.")
        raise typer.Exit(130) from None
    if not finished.outcomes:
        out.print("Nothing to train, draw or score: the store has all of it.")
    _print_verdict(finished.results, publisher.report)
    failed = [outcome for outcome in finished.outcomes if outcome.failed]
    if failed:
        lines = "".join(f"\n  {outcome.task.name}: {outcome.reason}" for outcome in failed)
        raise SweepIncomplete(
            f"{len(failed)} of {len(finished.outcomes)} tasks failed; run again to retry them:{lines}"
        )


@app.command()
def trial(
    sweep: SweepFile,
    index: Annotated[int, typer.Argument(help="The trial's number, as `harness check` lists them.", min=0)],
    workspace: Where = Path("workspace"),
    override: Overrides = None,
) -> None:
    """Run one trial in this process, without Ray, and print how it compares with its controls."""
    from harness.pipeline import run_trial
    from harness.progress import Display

    display = Display(err)
    bench = _bench(sweep, workspace, override, display)
    chosen = _trial(bench.plan, index)
    bench.workspace.check_writable()
    with display.live():
        results = run_trial(bench, chosen, announce=lambda tasks: display.announce("trial", tasks, bench))
    _print_contrasts(results, chosen.trial_id, "dev")


@app.command()
def report(
    folder: SweepFolder,
    output: Annotated[
        Path | None, typer.Option(help="Where to write the page; default FOLDER/report.html.")
    ] = None,
) -> None:
    """Write the report of a finished sweep again."""
    from harness.report import write_report
    from harness.results import load

    target = output or folder / "report.html"
    write_report(load(folder), folder.resolve().parent.parent, target)
    out.print(f"report: {target}")


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
    from harness.results import load
    from harness.spec.sweep import WandbTracking
    from harness.tracking import make_tracker

    spec = WandbTracking(project=project, entity=entity, mode=mode)
    make_tracker(spec, folder=folder).publish(load(folder), folder.resolve().parent.parent)
    out.print(f"published to W&B ({mode}): {folder / 'wandb'}")


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        out.print(__version__)
        raise typer.Exit


class _Publisher:
    """Writes the report and mirrors the tables each time there are new ones."""

    def __init__(self, bench: "Bench") -> None:
        self.bench = bench
        self.report = bench.workspace.sweep(bench.plan.sweep.name) / "report.html"

    def __call__(self, results: "Results") -> None:
        from harness.report import write_report
        from harness.tracking import make_tracker

        write_report(results, self.bench.workspace.root, self.report)
        try:
            tracker = make_tracker(self.bench.plan.sweep.tracking, folder=self.report.parent)
            tracker.publish(results, self.bench.workspace.root)
        except HarnessError as error:  # a mirror that fails costs no result
            err.print(f"[yellow]tracking:[/] {escape(str(error))}", highlight=False)


def _bench(sweep: Path, workspace: Path, override: Sequence[str] | None, display: Any = None) -> "Bench":
    from harness.stages import Bench
    from harness.workspace import Workspace

    report = display.report if display is not None else _ignore
    return Bench(
        plan=expand(load_sweep(sweep, override or ())), workspace=Workspace(workspace), report=report
    )


def _ignore(kind: str, count: int) -> None:
    """Nobody is watching."""


def _trial(plan: Plan, index: int) -> Trial:
    if index >= len(plan.trials):
        raise SpecError(
            f"there is no trial {index}; allowed: 0 to {len(plan.trials) - 1} (see harness check)"
        )
    return plan.trials[index]


def _print_plan(plan: Plan) -> None:
    sweep = plan.sweep
    out.print(f"[bold]{sweep.name}[/]  {sweep.question}", highlight=False)
    table = Table("trial", "id", *sweep.axes, box=None, pad_edge=False)
    shown = plan.trials if len(plan.trials) <= 40 else plan.trials[:40]
    for one in shown:
        table.add_row(str(one.index), one.trial_id, *(str(value) for value in one.params.values()))
    out.print(table)
    if len(shown) < len(plan.trials):
        out.print(f"… and {len(plan.trials) - len(shown)} more")
    out.print(
        f"{len(plan.trials)} trials · {len(plan.runs)} training runs · {len(plan.datasets)} datasets · "
        f"arms: {', '.join(arm.name + (' (control)' if arm.is_control else '') for arm in sweep.arms)}"
    )


def _print_verdict(results: "Results", report: Path) -> None:
    from harness.report.study import Study
    from harness.report.verdict import verdict

    found = verdict(Study(results))
    colour = {"better": "green", "worse": "red"}.get(found.tone, "yellow")
    out.print(f"[bold {colour}]{escape(found.headline)}[/]", highlight=False)
    for line in (*found.facts, *found.cautions):
        out.print(f"  {escape(line)}", highlight=False)
    out.print(f"report  {report}", highlight=False)
    out.print(f"tables  harness.results.load({str(report.parent)!r})", highlight=False)


def _print_contrasts(results: "Results", trial_id: str, split: str) -> None:
    table = Table(box=None, pad_edge=False)
    for heading in ("metric", "arm", "against", "diff", "interval", "p", "wins", "pairs"):
        table.add_column(heading, no_wrap=True)
    rows = results.summary
    chosen = rows[(rows["trial_id"] == trial_id) & (rows["split"] == split)]
    for row in chosen.to_dict("records"):
        table.add_row(
            str(row["metric"]),
            str(row["arm"]),
            str(row["control"]),
            _number(row["mean_difference"], "+.3f"),
            escape(f"[{_number(row['ci_low'], '+.3f')}, {_number(row['ci_high'], '+.3f')}]"),
            _number(row["p_value"], ".4f"),
            _number(row["win_rate"], ".0%"),
            str(row["n_pairs"]),
        )
    out.print(table)
    for reason in chosen["reason"].dropna().unique():
        out.print(f"– {escape(reason)}", highlight=False)


def _number(value: float, form: str) -> str:
    """A number in a table; a missing one is a dash, never a zero."""
    return format(value, form) if math.isfinite(value) else "–"


def main() -> None:
    """Entry point: a user's mistake is one clear line and exit code 2, never a traceback."""
    try:
        app()
    except HarnessError as error:
        err.print(f"[bold red]error:[/] {escape(str(error))}", highlight=False)
        sys.exit(error.exit_code)
