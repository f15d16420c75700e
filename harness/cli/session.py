"""One call that makes things: the display, signals to stop, the report and its mirror around the pipeline."""

import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from types import FrameType

import typer

from harness.cli.console import err
from harness.cli.growing import GrowingPage
from harness.cli.progress import Display
from harness.config.plan.plan import Plan
from harness.config.schema.sweep import WandbTracking
from harness.engine.accounting import inventory
from harness.engine.pipeline import SweepRun, run_sweep
from harness.engine.queue import Executor
from harness.engine.stages.context import Context, Event, Kind, Stop
from harness.engine.tasks import Task
from harness.errors import HarnessError, Interrupted
from harness.reporting.report import write_report
from harness.reporting.wandb_live import LiveMirror
from harness.reporting.wandb_tracker import make_tracker
from harness.results import Results
from harness.store.workspace import REPORT, Workspace


@dataclass
class Stopping:
    """What a signal asked for. Exit codes are the shell's: 130 after Ctrl-C, 143 after SIGTERM."""

    by: signal.Signals | None = None

    def __call__(self) -> bool:
        """Whether all are to stop."""
        return self.by is not None

    @property
    def exit_code(self) -> int:
        """Of a command that was stopped."""
        return 128 + (self.by or signal.SIGINT)


@contextmanager
def stop_at_signals(told: Callable[[], None]) -> Iterator[Stopping]:
    """Give what says whether a signal asked to stop in this block; the second is a KeyboardInterrupt.

    Ctrl-C, SIGTERM (Slurm, Kubernetes, `timeout`) and SIGHUP (a lost terminal) ask alike. `told` is called
    once, in a thread of its own: within a signal's handler nothing may be printed.
    """
    stopping = Stopping()

    def handle(number: int, frame: FrameType | None) -> None:
        if stopping():
            raise KeyboardInterrupt
        stopping.by = signal.Signals(number)
        threading.Thread(target=told, daemon=True).start()

    before = {number: signal.getsignal(number) for number in STOPS}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:  # as a script's job in the background, or under nohup
            signal.signal(number, handle)
    try:
        yield stopping
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
STOPPING = (
    "\nStopping. Waiting for what is under way: training saves a checkpoint at its next step; a dataset, a "
    "batch of images, its scores are finished. Ctrl-C again stops immediately, and what is under way is lost."
)


@contextmanager
def interruptible(display: Display) -> Iterator[Stop]:
    """The live screen; Ctrl-C or SIGTERM leaves the block in an orderly way and says how to go on."""
    stopping = Stopping()
    try:
        with display.live(), stop_at_signals(lambda: err.print(STOPPING)) as stopping:
            yield stopping
    except (Interrupted, KeyboardInterrupt):
        err.print("\nStopped. What is finished is kept; run the same command to go on:")
        err.print(f"  harness {shlex.join(sys.argv[1:])}", soft_wrap=True)
        raise typer.Exit(stopping.exit_code) from None


def carry_out(
    display: Display,
    stop: Stop,
    *,
    plan: Plan,
    address: str,
    workers: AbstractContextManager[Executor],
) -> tuple[SweepRun, tuple[str, ...]]:
    """Carry a sweep to its end in the workspace at the address; with it, what to do with its mirror."""
    sweep, workspace = plan.sweep, Workspace(address)
    workspace.check_writable()
    here = workspace.sweep(sweep.name)
    tracker = make_tracker(sweep.tracking, folder=here)
    live = _live_mirror(plan, workspace, display)
    growing = GrowingPage(address, sweep.name, display.warn)
    next_steps: tuple[str, ...] = ()

    def report(kind: Kind | Event, count: int) -> None:
        display.report(kind, count)
        growing.noticed()
        if live is not None:
            live.count(kind, count)

    def announce(heading: str, plan: Plan, tasks: Sequence[Task]) -> None:
        display.begin(heading, inventory.remaining(plan, workspace, tasks))
        if live is not None:
            live.see(plan)

    def publish(results: Results) -> bool:
        nonlocal next_steps
        with growing.final():
            write_report(results, workspace, here / REPORT)
            workspace.upload_sweep(sweep.name, [REPORT])
        try:
            with live.resting() if live is not None else nullcontext():
                next_steps = tracker.publish(results, workspace).next_steps
        except HarnessError as error:  # a mirror that fails costs no result
            display.warn(f"tracking: {error}")
            return False
        return True

    ctx = Context.of(plan, address, report, stop=stop)
    mirroring = live.running() if live is not None else nullcontext()
    with workers as executor, mirroring, growing.every(sweep.compute.report_every):
        finished = run_sweep(plan, ctx, executor, announce=announce, publish=publish)
    return finished, next_steps


def _live_mirror(plan: Plan, workspace: Workspace, display: Display) -> LiveMirror | None:
    tracking = plan.sweep.tracking
    if not isinstance(tracking, WandbTracking) or not tracking.live:
        return None
    return LiveMirror(tracking, workspace.sweep(plan.sweep.name), workspace, display.warn)
