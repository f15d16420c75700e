"""Stages of a small sweep that are made, and damaged, by hand."""

from typing import Any

from harness.config.plan.plan import Cell, Plan, ResolvedArm, TrainingRun
from harness.store.artifact import Artifact, write_json
from harness.store.workspace import PLAN, Workspace


def plan_sweep(workspace: Workspace, plan: Plan) -> None:
    """What a run of this sweep writes first."""
    folder = workspace.sweep(plan.sweep.name)
    folder.mkdir(parents=True)
    write_json(folder / PLAN, plan.sweep.model_dump(mode="json"))


def make(artifact: Artifact, *files: str, **facts: Any) -> str:
    """Make a stage by hand; its name."""
    with artifact.build(**facts) as folder:
        for file in files or ("file.txt",):
            (folder / file).write_text(f"content of {file}")
    return artifact.path.relative_to(artifact.path.parents[1]).as_posix()


def make_images(workspace: Workspace, arm_id: str, chunk_id: str, cells: tuple[Cell, ...]) -> Artifact:
    artifact = workspace.images(arm_id, chunk_id)
    make(artifact, *(f"{cell.image_id}.png" for cell in cells))
    return artifact


def train(workspace: Workspace, run: TrainingRun, *steps: int, from_step: int = 0) -> None:
    for step in steps:
        make(workspace.checkpoint(run.run_id, step), from_step=from_step, step=step, train_seconds=1.0)


def own_run(plan: Plan) -> TrainingRun:
    return plan.runs[str(plan.trials[0].run_id)]


def own_draw(plan: Plan) -> ResolvedArm:
    return plan.arms[plan.trials[0].arms["wrong_lora"]]


def damage(artifact: Artifact, how: str) -> None:
    file = artifact.path / ("manifest.json" if "manifest" in how else "file.txt")
    content = file.read_bytes()
    match how.split()[0]:
        case "truncated":
            file.write_bytes(content[:-4])
        case "flipped":
            file.write_bytes(bytes([content[0] ^ 0x80]) + content[1:])
        case "missing":
            file.unlink()
