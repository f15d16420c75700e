"""Mirrors of a finished sweep in W&B. The parquet tables stay the truth.

The driver alone writes them, after the tables: images made on other machines are there, and an error of a
tracker costs no results.
"""

import json
import logging
import os
import shlex
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from PIL import Image

from harness.config.schema.sweep import NoTracking, TrackingConfig, WandbTracking
from harness.errors import TrackingError
from harness.reporting import wandb_report
from harness.reporting.wandb_runs import DEV_IMAGES, STEP, TEST_IMAGES, Run, Shown, all_runs

if TYPE_CHECKING:
    from harness.results import Results
    from harness.store.workspace import Workspace


INIT_SECONDS = 60.0  # online: to begin a run
FINISH_SECONDS = 120.0  # online: to send the rest of a run
REQUEST_SECONDS = 30.0  # online: of one request; a table's are not cut by FINISH_SECONDS
REQUEST_RETRIES = 2
LONGEST_SIDE = 1024  # px of an image in W&B
LOSSLESS_SIDE = 256  # px; below, lossy compression shows and saves little
FOLDER = "wandb"  # in the sweep's folder
REPORT_ROW = "report"  # of the ledger, beside the runs


@dataclass(frozen=True, kw_only=True)
class Published:
    """Where the mirror is: what to tell the user to do next."""

    next_steps: tuple[str, ...] = ()  # one command or address each, with what it is for


class Tracker(Protocol):
    """Shows a sweep in another program."""

    def publish(self, results: "Results", workspace: "Workspace") -> Published:
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

    def publish(self, results: "Results", workspace: "Workspace") -> Published:
        """Does nothing."""
        return Published()


class WandbTracker:
    """One W&B run per trial and per control and one for the sweep, grouped by sweep.

    Run ids follow from sweep, trial and control, so a run is continued, never doubled. What was published is
    kept in `wandb/published.json`: a run whose content has not changed is left alone, and an offline run that
    has is replaced as long as it was not synced.
    """

    def __init__(self, config: WandbTracking, folder: Path) -> None:
        """Nothing is written before `publish`. Raises TrackingError where the extra `report` is missing."""
        if config.report:
            wandb_report.require_library()
        self.config = config
        self.folder = folder.resolve()
        self.shown_folder = folder
        self.ledger = Ledger.of_folder(self.folder, config)

    def publish(self, results: "Results", workspace: "Workspace") -> Published:
        """Mirror the results. Any failure of W&B is a TrackingError."""
        runs = all_runs(results, workspace, images_per_arm=self.config.images_per_trial)
        try:
            with quiet_wandb(self.folder):
                for run in runs:
                    known = self.ledger.of(run.run_id)
                    if known.get("digest") != run.digest():
                        self.ledger.drop_unsynced(run.run_id)
                        self._write(run, workspace)
                if self.config.report:
                    self._write_report(results, runs)
        except Exception as error:  # wandb's exceptions have no common base, and a mirror must cost no sweep
            raise TrackingError(
                f"W&B: {one_line(error)}; the tables and the page are complete, `harness publish` tries again"
            ) from error
        return Published(next_steps=tuple(self._next_steps()))

    def _next_steps(self) -> Iterator[str]:
        shown = shlex.quote(f"{self.shown_folder}/{FOLDER}")
        if self.config.mode == "offline":
            yield f"wandb sync {shown}/offline-run-*"
            yield f"wandb leet {shown}"
        report = self.ledger.of(REPORT_ROW)
        if self.config.report and report:
            yield report.get("url") or f"{shown}/{wandb_report.FILE}"

    def _write_report(self, results: "Results", runs: Sequence[Run]) -> None:
        known = self.ledger.of(REPORT_ROW)
        report = wandb_report.build(results, runs, self.config)
        row = wandb_report.save(report, known, self.config, self.folder / FOLDER)
        if row != known:
            self.ledger.note(REPORT_ROW, **row)

    def _write(self, run: Run, workspace: "Workspace") -> None:
        """Write one run, or what an earlier call has not sent of it."""
        known = self.ledger.of(run.run_id)
        sent, scored = known.get("step", 0), known.get("scored", [])
        with opened(self.config, self.folder, run=run) as handle, tempfile.TemporaryDirectory() as scratch:
            handle.summary.update(run.summary)
            for row in run.history:
                is_scored = any(key.startswith("eval/") for key in row)
                if row[STEP] > sent:
                    handle.log(row)
                elif is_scored and row[STEP] not in scored:
                    handle.log({key: row[key] for key in row if key == STEP or key.startswith("eval/")})
            shown = _media(run, workspace, Path(scratch))
            if shown:
                handle.log(shown)
        self.ledger.note(
            run.run_id,
            digest=run.digest(),
            folder=Path(handle.dir).parent.name,
            step=max((int(row[STEP]) for row in run.history), default=0),
            scored=[int(row[STEP]) for row in run.history if any(key.startswith("eval/") for key in row)],
        )


class Ledger:
    """What was published, by target (mode, entity, project) and run, in a file that outlives the driver."""

    def __init__(self, path: Path, config: WandbTracking) -> None:
        """The file is read at each question: a live mirror and a tracker of one driver share it."""
        self.path = path
        self.target = f"{config.mode} {config.entity or ''}/{config.project}"
        self.offline = config.mode == "offline"

    @classmethod
    def of_folder(cls, folder: Path, config: WandbTracking) -> "Ledger":
        """The ledger of a sweep's folder."""
        return cls(folder / FOLDER / "published.json", config)

    def of(self, run_id: str) -> dict[str, Any]:
        """`digest`, `folder`, last training `step` sent, steps `scored`; empty for a run not written yet."""
        known: dict[str, Any] = self._read().get(f"{self.target} {run_id}", {})
        return known

    def note(self, run_id: str, **facts: Any) -> None:
        """Keep what was written."""
        content = {**self._read(), f"{self.target} {run_id}": facts}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps(content, indent=1, sort_keys=True))
        temporary.replace(self.path)

    def drop_unsynced(self, run_id: str) -> None:
        """Remove our earlier offline copy of a run, unless W&B has it already; it is written whole again."""
        known = self.of(run_id)
        if not self.offline or not known:
            return
        earlier = self.path.parent / known["folder"]
        if earlier.is_dir() and not list(earlier.glob("*.synced")):
            shutil.rmtree(earlier)
        self.note(run_id)

    def _read(self) -> dict[str, Any]:
        if not self.path.is_file():
            return {}
        content: dict[str, Any] = json.loads(self.path.read_text())
        return content


@contextmanager
def opened(config: WandbTracking, folder: Path, *, run: Run) -> Iterator[Any]:
    """A W&B run, begun or continued, and finished with the block."""
    handle = begin(config, folder, run=run)
    try:
        yield handle
    finally:
        handle.finish(exit_code=int(run.failed))


def begin(config: WandbTracking, folder: Path, *, run: Run) -> Any:
    """A W&B run, begun or continued. Raises TrackingError without a login."""
    import wandb

    if config.mode == "online" and not wandb.login(prompt=False):
        raise TrackingError("not logged in; run `wandb login`, or set tracking.mode: offline")
    handle = wandb.init(
        project=config.project,
        entity=config.entity,
        id=run.run_id,
        name=run.name,
        group=run.group,
        job_type=run.job_type,
        tags=list(run.tags),
        config=run.config,
        resume="allow",
        reinit="create_new",
        settings=wandb.Settings(
            mode=config.mode,
            root_dir=str(folder),
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
            x_graphql_timeout_seconds=REQUEST_SECONDS,
            x_graphql_retry_max=REQUEST_RETRIES,
        ),
    )
    handle.define_metric(STEP, hidden=True, summary="none")
    for part in ("train", "eval"):  # in the summary they would be a hundred columns
        handle.define_metric(f"{part}/*", step_metric=STEP, summary="none")
    for part in (DEV_IMAGES, TEST_IMAGES):
        handle.define_metric(f"{part}/*", summary="none")
    return handle


def _media(run: Run, workspace: "Workspace", scratch: Path) -> dict[str, Any]:
    """Tables, page and images as W&B takes them."""
    import wandb

    shown: dict[str, Any] = {
        name: wandb.Table(columns=list(rows[0]), data=[list(row.values()) for row in rows])
        for name, rows in run.tables.items()
        if rows
    }
    for place, (key, images) in enumerate(run.images.items()):
        shown[key] = [
            wandb.Image(
                str(_shrunk(workspace, image, scratch / f"{place}-{index}.webp")), caption=image.caption
            )
            for index, image in enumerate(images)
        ]
    if run.page is not None:
        shown["report"] = wandb.Html(Path(run.page).read_text(encoding="utf-8"), inject=False)
    return shown


def _shrunk(workspace: "Workspace", image: Shown, file: Path) -> Path:
    """The image as WebP of at most `LONGEST_SIDE`; a grey one where it is missing or cannot be read."""
    found = Image.new("RGB", (64, 64), "#888888")
    if image.path is not None:
        with suppress(OSError), Image.open(workspace.file(image.path)) as opened_file:
            found = opened_file.convert("RGB")
    found.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    found.save(file, quality=90, lossless=max(found.size) <= LOSSLESS_SIDE)
    return file


def one_line(error: Exception) -> str:
    """What an error of W&B says, on one line of at most 200 characters; all of its lines, if it has several.

    The first line of a settings error only counts them.
    """
    lines: Sequence[str] = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(line for line in lines if not line.startswith("For further information"))
    return text[:199] + "…" if len(text) > 200 else text or type(error).__name__


@contextmanager
def quiet_wandb(folder: Path) -> Iterator[None]:
    """W&B without terminal output, reports of errors, or files outside `folder`.

    Its background process ends with the block.
    """
    (folder / FOLDER).mkdir(parents=True, exist_ok=True)
    ours = {
        "WANDB_DATA_DIR": str(folder / FOLDER / "data"),
        "WANDB_CACHE_DIR": str(folder / FOLDER / "cache"),
        "WANDB_CONFIG_DIR": str(folder / FOLDER / "config"),
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
