"""Offline runs, read back with W&B's own reader."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

RUN_FIELDS = {"group": "run_group", "job_type": "job_type", "name": "display_name"}


RUN_FIELDS = {"group": "run_group", "job_type": "job_type", "name": "display_name"}


def offline_runs(folder: Path) -> dict[str, Path]:
    """Run id → its folder, below the sweep's folder."""
    return {path.name.split("-", 3)[3]: path for path in sorted((folder / "wandb").glob("offline-run-*"))}


def content(folder: Path) -> dict[str, Any]:
    """What `wandb leet inspect` prints of a run: its summary, and `history` with a mapping per row."""
    found: dict[str, Any] = json.loads(_inspect("--summary", "--json", str(folder)))
    records = [json.loads(line) for line in _inspect("--json", str(folder)).splitlines() if line]
    found["history"] = [row["history"]["item"] for row in records if row["type"] == "history"]
    # A run that is still being written may not have this record in its file yet.
    run: dict[str, Any] = next((row["run"] for row in records if row["type"] == "run"), {})
    return found | {name: run.get(key) for name, key in RUN_FIELDS.items()}


def captions(history: list[dict[str, Any]]) -> dict[str, list[str]]:
    """Media key → captions in the order of the list, of the last row that has it."""
    end = ".captions"
    rows = [(key, value) for row in history for key, value in row.items() if key.endswith(end)]
    return {key.removesuffix(end): value for key, value in rows}


def _inspect(*arguments: str) -> str:
    # By the interpreter, since the script may not be on the path of a test's environment.
    command = [sys.executable, "-m", "wandb", "leet", "inspect", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
