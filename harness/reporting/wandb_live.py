"""A sweep in W&B while it runs: its progress, and each trial's losses as checkpoints arrive.

A thread of the driver reads the store, so that it does not matter on which machine a trial is trained. What
it has sent stands in the ledger; the finished sweep is published as without it, and a driver that is killed
loses nothing that a checkpoint holds.
"""

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.config.plan.axes import param_label
from harness.config.plan.plan import Plan, Trial
from harness.config.schema.sweep import WandbTracking
from harness.reporting.wandb_runs import STEP, Run, training_rows, trial_identity
from harness.reporting.wandb_tracker import Ledger, begin, one_line, quiet_wandb

if TYPE_CHECKING:
    from harness.store.workspace import Workspace

POLL_SECONDS = 15.0  # a run appears within two of these after its first step


class LiveMirror:
    """Runs that grow. All W&B calls are the thread's, or are made while it rests."""

    def __init__(
        self, config: WandbTracking, folder: Path, workspace: "Workspace", warn: Callable[[str], None]
    ) -> None:
        """Nothing is written before `running`. `warn` hears once why it gave up."""
        self._config, self._folder, self._workspace, self._warn = config, folder.resolve(), workspace, warn
        self._ledger = Ledger.of_folder(self._folder, config)
        self._plan: Plan | None = None
        self._counts: Counter[str] = Counter()
        self._handles: dict[str, Any] = {}
        self._ended = threading.Event()
        self._writing = threading.Lock()
        self._is_broken = False

    def see(self, plan: Plan) -> None:
        """The plan as it is now: a search asks for more trials as it goes."""
        self._plan = plan

    def count(self, kind: str, number: int) -> None:
        """What workers report."""
        self._counts[kind] += number

    @contextmanager
    def running(self) -> Iterator[None]:
        """Mirror while the block runs."""
        thread = threading.Thread(target=self._loop, daemon=True, name="wandb-live")
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            thread.join()

    @contextmanager
    def resting(self) -> Iterator[None]:
        """No run is open in the block: the tracker writes them whole."""
        with self._writing:
            self._finish_all()
            yield

    def _loop(self) -> None:
        with quiet_wandb(self._folder):
            while not self._ended.wait(POLL_SECONDS) and not self._is_broken:
                with self._writing:
                    self._tick()
            with self._writing:
                self._finish_all()

    def _tick(self) -> None:
        plan = self._plan
        if plan is None or not self._counts:
            return
        try:
            self._progress(plan)
            for trial in plan.trials:
                self._trial(plan, trial)
        except Exception as error:  # wandb's have no common base, and a mirror must cost no sweep
            self._is_broken = True
            self._warn(f"tracking.live: {one_line(error)}; the sweep goes on, and is published at its end")

    def _progress(self, plan: Plan) -> None:
        """The run of the sweep, with how much was done in this call."""
        name = plan.sweep.name
        run = Run(
            run_id=f"{name}-sweep",
            name=name,
            group=name,
            job_type="sweep",
            tags=("sweep", "running"),
            config={"name": name, "question": plan.sweep.question},
            summary={},
        )
        if "digest" not in self._ledger.of(run.run_id):  # else it was published, after a round of a search
            self._open(run).log({f"progress/{kind}": count for kind, count in self._counts.items()})

    def _trial(self, plan: Plan, trial: Trial) -> None:
        """What the trial's checkpoints hold beyond what was sent; nothing where its adapter is a file."""
        if trial.run_id is None:
            return
        steps = trial.config.trained.training.steps
        run = _run_of(plan, trial)
        known = self._ledger.of(run.run_id)
        sent = known.get("step", 0) if run.run_id in self._handles or not self._ledger.offline else 0
        reached = [step for step in self._workspace.checkpoints(trial.run_id) if step <= steps]
        if "digest" in known or not reached or reached[-1] <= sent:
            return
        handle = self._open(run)
        for step, row in sorted(training_rows(self._workspace, trial.run_id, steps).items()):
            if step > sent:
                handle.log(row)
                sent = int(row[STEP])
        self._ledger.note(run.run_id, folder=Path(handle.dir).parent.name, step=sent)
        if sent == steps:
            self._handles.pop(run.run_id).finish()

    def _open(self, run: Run) -> Any:
        """The run's handle; one of an earlier driver is continued online, and written anew offline."""
        if run.run_id not in self._handles:
            self._ledger.drop_unsynced(run.run_id)
            handle = begin(self._config, self._folder, run=run)
            self._handles[run.run_id] = handle
            sent = 0 if self._ledger.offline else self._ledger.of(run.run_id).get("step", 0)
            self._ledger.note(run.run_id, folder=Path(handle.dir).parent.name, step=sent)
        return self._handles[run.run_id]

    def _finish_all(self) -> None:
        while self._handles:
            _, handle = self._handles.popitem()
            with suppress(Exception):  # what could not be sent is published at the end
                handle.finish()


def _run_of(plan: Plan, trial: Trial) -> Run:
    row = {axis: param_label(value) for axis, value in trial.params.items()}
    row |= {"trial_id": trial.trial_id, "index": trial.index}
    row["config"] = json.dumps(trial.config.model_dump(mode="json"))
    identity = trial_identity({"name": plan.sweep.name, "axes": dict(plan.sweep.axes)}, row)
    return Run(**identity, tags=("running", plan.sweep.search.kind), summary={})
