"""One call that makes things: the display, Ctrl-C, the report and its mirror around the pipeline."""

import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import typer
from rich.markup import escape

from harness import inventory
from harness.bench import Bench, Kind
from harness.driver import Executor
from harness.errors import HarnessError, Interrupted
from harness.interrupt import Stop, stop_at_ctrl_c
from harness.pipeline import SweepRun, run_sweep
from harness.progress import Display
from harness.report import write_report
from harness.results import Results
from harness.spec.expand import Plan
from harness.tasks import Task
from harness.terminal import err
from harness.tracking import make_tracker
from harness.workspace import Workspace

REPORT = "report.html"
STOPPING = (
    "\nStopping. Waiting for what is under way: training saves a checkpoint at its next step; a dataset, a "
    "batch of pictures, its scores are finished. Ctrl-C again stops at once, and what is under way is lost."
)


@contextmanager
def interruptible(display: Display) -> Iterator[Stop]:
    """The live screen; Ctrl-C leaves the block in an orderly way and says how to go on."""
    try:
        with display.live(), stop_at_ctrl_c(lambda: err.print(STOPPING, highlight=False)) as stop:
            yield stop
    except (Interrupted, KeyboardInterrupt):
        err.print("\nStopped. What is finished is kept; run the same command to go on:")
        err.print(f"  harness {escape(shlex.join(sys.argv[1:]))}", highlight=False)
        raise typer.Exit(Interrupted.exit_code) from None


def carry_out(
    display: Display,
    stop: Stop,
    *,
    plan: Plan,
    address: str,
    workers: AbstractContextManager[Executor],
) -> SweepRun:
    """Carry a sweep to its end in the workspace at the address."""
    bench = Bench(plan=plan, workspace=Workspace(address), report=display.report, stop=stop)
    bench.workspace.check_writable()

    def announce(stage: str, tasks: Sequence[Task], bench: Bench) -> None:
        display.begin(stage, work_of(tasks, bench))

    def publish(results: Results) -> bool:
        here = bench.workspace.sweep(plan.sweep.name)
        write_report(results, bench.workspace, here / REPORT)
        bench.workspace.upload_sweep(plan.sweep.name, [REPORT])
        try:
            make_tracker(plan.sweep.tracking, folder=here).publish(results, bench.workspace)
        except HarnessError as error:  # a mirror that fails costs no result
            display.warn(f"tracking: {error}")
            return False
        return True

    with workers as executor:
        return run_sweep(bench, executor, announce=announce, publish=publish)


def work_of(tasks: Sequence[Task], bench: Bench) -> dict[Kind, inventory.Count]:
    """What the tasks have to make."""
    counts = inventory.remaining(
        bench,
        [name for task in tasks for name in task.datasets],
        [name for task in tasks for name in task.runs],
        [pair for task in tasks for pair in task.draws],
    )
    trials = sum(
        bench.plan.trials_ending_with[name] for task in tasks for name, split in task.draws if split == "dev"
    )
    return {**counts, "trials": inventory.Count(asked=trials, missing=trials)}
