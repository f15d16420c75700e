"""Damaged tables and manifests of a finished sweep.

One is wrongly taken when anything that is read differs from what was written: a number of a table, the
sweep's own description, a loss curve, a checkpoint's facts or its bytes.
"""

import random
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.fuzz.cases import Cases, damaged
from harness import results
from harness.store.artifact import MANIFEST
from harness.store.workspace import Workspace
from tests.reporting.report import example


def damaged_stores(folder: Path, *, seed: int, count: int) -> Cases:
    """A sweep of two trials in which one file at a time is damaged, gone or another's."""
    root = folder / "workspace"
    sweep = example.config(ranks=(4,), steps=(50,), n_prompts=4, seeds=(0,))
    example.build(root, sweep, failed=())
    written = _read(root, sweep.name)
    files = sorted(path for path in (root / "sweeps").rglob("*") if path.is_file())
    files += sorted(path for path in root.rglob("adapters/**/*") if path.is_file())
    for number in range(count):
        dice = random.Random(f"store {seed} {number}")
        file = dice.choice(files)
        content = file.read_bytes()
        # Without its manifest an artifact is not finished, and no loss of it is known: that is no damage.
        rest = ("other", "bytes" if file.name == MANIFEST else "gone")
        match dice.choice(("bytes", "bytes", "bytes", "bytes", *rest)):
            case "bytes":
                done, other = damaged(content, dice)
                file.write_bytes(other)
            case "other":
                alike = [path for path in files if path.suffix == file.suffix and path != file]
                file.write_bytes((taken := dice.choice(alike or files)).read_bytes())
                done = f"replaced by {taken.name}"
            case "gone":
                file.unlink()
                done = "gone"

        def read() -> None:
            found = _read(root, sweep.name)
            for name, value in written.items():
                same = value.equals(found[name]) if isinstance(value, pd.DataFrame) else value == found[name]
                assert same, f"{name} is another"

        yield f"{file.relative_to(root)}: {done}", read
        file.write_bytes(content)


def _read(root: Path, name: str) -> dict[str, Any]:
    """All that a reader of the sweep may see."""
    found = results.load(root / "sweeps" / name)
    held: dict[str, Any] = {table: getattr(found, table) for table in ("trials", "arms", "images", "scores")}
    held |= {"summary": found.summary, "sweep": found.sweep, "losses": found.losses}
    store = Workspace(root)
    for run_id in found.trials["run_id"]:
        for steps, checkpoint in store.checkpoints(run_id).items():
            checkpoint.verify()
            manifest = checkpoint.manifest()
            held[f"{run_id} {steps}"] = {file: checkpoint.read(file) for file in manifest["files"]}
            held[f"{run_id} {steps} facts"] = manifest["facts"], manifest["seconds"], manifest["versions"]
    return held
