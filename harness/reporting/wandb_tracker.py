"""Mirrors of a finished sweep in W&B. The parquet tables stay the truth.

The driver alone writes them, after the tables: images made on other machines are there, and an error of a
tracker costs no results.
"""

import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from harness.config.schema.sweep import NoTracking, TrackingConfig, WandbTracking
from harness.errors import TrackingError
from harness.reporting.wandb_runs import Run, side_by_side, sweep_run, trial_runs

if TYPE_CHECKING:
    from harness.results import Results
    from harness.store.workspace import Workspace


INIT_SECONDS = 60.0  # online: to begin a run
FINISH_SECONDS = 120.0  # online: to send the rest of a run


class Tracker(Protocol):
    """Shows a sweep in another program."""

    def publish(self, results: "Results", workspace: "Workspace") -> None:
        """Mirror the results; doing it again changes nothing. A failure is a TrackingError."""
        ...


def make_tracker(config: TrackingConfig, *, folder: Path) -> Tracker:
    """The tracker of a specification. What it writes on this machine lies below `folder`."""
    match config:
        case NoTracking():
            return NoTracker()
        case WandbTracking():
            return WandbTracker(config, folder)


class NoTracker:
    """Mirrors nothing."""

    def publish(self, results: "Results", workspace: "Workspace") -> None:
        """Does nothing."""


class WandbTracker:
    """One W&B run per trial and one for the sweep, grouped by sweep.

    Run ids follow from sweep and trial, so a run is continued, never doubled. What was published is kept in
    `wandb/published.json`: a run whose content has not changed is left alone, and an offline run that has is
    replaced as long as it was not synced.
    """

    def __init__(self, config: WandbTracking, folder: Path) -> None:
        """Nothing is written before `publish`."""
        self.config = config
        self.folder = folder.resolve()
        self._ledger = self.folder / "wandb" / "published.json"

    def publish(self, results: "Results", workspace: "Workspace") -> None:
        """Mirror the results. Any failure of W&B is a TrackingError."""
        runs = [
            *trial_runs(results, workspace, images_per_trial=self.config.images_per_trial),
            sweep_run(results, workspace),
        ]
        target = f"{self.config.mode} {self.config.entity or ''}/{self.config.project}"
        try:
            with _quiet_wandb(self.folder):
                published = self._read_ledger()
                for run in runs:
                    known = published.get(f"{target} {run.run_id}")
                    if known is None or known["digest"] != run.digest():
                        self._drop_unsynced(known)
                        folder = self._write(run, workspace)
                        published[f"{target} {run.run_id}"] = {"digest": run.digest(), "folder": folder}
                        self._write_ledger(published)
        except Exception as error:  # wandb's exceptions have no common base, and a mirror must cost no sweep
            line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise TrackingError(
                f"W&B: {line}; the tables and the report are complete, `harness publish` tries again"
            ) from error

    def _write(self, run: Run, workspace: "Workspace") -> str:
        """Write one run; gives the folder it was written to, relative to `wandb/`."""
        import wandb

        if self.config.mode == "online" and not wandb.login(prompt=False):
            raise TrackingError("not logged in; run `wandb login`, or set tracking.mode: offline")
        handle = wandb.init(
            project=self.config.project,
            entity=self.config.entity,
            id=run.run_id,
            name=run.name,
            group=run.group,
            job_type=run.job_type,
            config=run.config,
            resume="allow",
            reinit="create_new",
            settings=wandb.Settings(
                mode=self.config.mode,
                root_dir=str(self.folder),
                quiet=True,
                silent=True,
                console="off",
                disable_git=True,
                disable_code=True,
                x_disable_stats=True,
                x_save_requirements=False,
                init_timeout=INIT_SECONDS,
                finish_timeout=FINISH_SECONDS,
                finish_timeout_raises=True,
            ),
        )
        try:
            if handle.step == 0:  # a continued run has its history already
                for step, loss in enumerate(run.losses, start=1):
                    handle.log({"loss": loss}, step=step)
            shown: dict[str, Any] = {
                name: wandb.Table(columns=list(rows[0]), data=[list(row.values()) for row in rows])
                for name, rows in run.tables.items()
                if rows
            }
            strips = [
                (image, strip.caption) for strip in run.strips if (image := side_by_side(workspace, strip))
            ]
            if strips:
                shown["images"] = [wandb.Image(image, caption=caption) for image, caption in strips]
            if run.report is not None:
                shown["report"] = wandb.Html(Path(run.report).read_text(encoding="utf-8"), inject=False)
            if shown:
                handle.log(shown)
            handle.summary.update(run.summary)
        finally:
            handle.finish(exit_code=int(run.failed))
        return Path(handle.dir).parent.name

    def _drop_unsynced(self, known: dict[str, str] | None) -> None:
        """Remove our earlier offline copy of a run, unless W&B has it already."""
        if known is None or self.config.mode != "offline":
            return
        earlier = self._ledger.parent / known["folder"]
        if earlier.is_dir() and not list(earlier.glob("*.synced")):
            shutil.rmtree(earlier)

    def _read_ledger(self) -> dict[str, dict[str, str]]:
        if not self._ledger.is_file():
            return {}
        ledger: dict[str, dict[str, str]] = json.loads(self._ledger.read_text())
        return ledger

    def _write_ledger(self, published: dict[str, dict[str, str]]) -> None:
        temporary = self._ledger.with_suffix(".tmp")
        temporary.write_text(json.dumps(published, indent=1, sort_keys=True))
        temporary.replace(self._ledger)


@contextmanager
def _quiet_wandb(folder: Path) -> Iterator[None]:
    """W&B without terminal output, reports of errors, or files outside `folder`.

    Its background process ends with the block.
    """
    (folder / "wandb").mkdir(parents=True, exist_ok=True)
    ours = {
        "WANDB_DATA_DIR": str(folder / "wandb" / "data"),
        "WANDB_CACHE_DIR": str(folder / "wandb" / "cache"),
        "WANDB_CONFIG_DIR": str(folder / "wandb" / "config"),
        "WANDB_ERROR_REPORTING": "false",
        "WANDB_SILENT": "true",
    }
    before = {name: os.environ.get(name) for name in ours}
    logger = logging.getLogger("wandb")
    level = logger.level
    os.environ.update(ours)
    logger.setLevel(logging.ERROR)
    try:
        import wandb

        yield
    finally:
        with suppress(SystemExit):  # where its background process has failed, W&B would end this one
            wandb.teardown()
        logger.setLevel(level)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
