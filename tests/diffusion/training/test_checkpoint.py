from dataclasses import replace
from pathlib import Path

import pytest
import torch

from harness.diffusion.training.checkpoint import Checkpoint
from harness.errors import ArtifactError
from harness.store.training_record import RECORD
from tests.diffusion.training.runs import same


@pytest.fixture
def checkpoint() -> Checkpoint:
    return Checkpoint(
        run_id="a" * 16,
        step=2,
        adapter={"unet.x.lora_A.weight": torch.randn(2, 3, generator=torch.Generator().manual_seed(0))},
        optimizer={"0000.step": torch.tensor(2.0), "0000.exp_avg": torch.full((2, 3), 1e-30)},
        losses=[0.1, 1 / 3],
        ema={"unet.x.lora_A.weight": torch.ones(2, 3)},
        validation={1: 0.25, 2: 1 / 7},
    )


def test_what_was_written_is_read(checkpoint: Checkpoint, tmp_path: Path) -> None:
    checkpoint.write(tmp_path / "new" / "folder")
    read = Checkpoint.read(tmp_path / "new" / "folder")
    assert same(read, checkpoint)
    assert read.validation == checkpoint.validation


def test_no_average_and_no_validation_are_read_as_such(checkpoint: Checkpoint, tmp_path: Path) -> None:
    replace(checkpoint, ema={}, validation=None).write(tmp_path)
    read = Checkpoint.read(tmp_path)
    assert (read.ema, read.validation) == ({}, None)


def test_no_pickle_is_written(checkpoint: Checkpoint, tmp_path: Path) -> None:
    checkpoint.write(tmp_path)
    assert {file.suffix for file in tmp_path.iterdir()} == {".json", ".safetensors"}


@pytest.mark.parametrize("name", ["training_state.json", "training_state.safetensors"])
@pytest.mark.parametrize("damage", ["lost", "cut", "emptied", "zeroed"])
def test_a_damaged_checkpoint_is_a_stage_error(
    checkpoint: Checkpoint, tmp_path: Path, name: str, damage: str
) -> None:
    checkpoint.write(tmp_path)
    file = tmp_path / name
    data = file.read_bytes()
    match damage:
        case "lost":
            file.unlink()
        case "cut":
            file.write_bytes(data[: len(data) // 2])
        case "emptied":
            file.write_bytes(b"")
        case "zeroed":
            file.write_bytes(bytes(len(data)))
    with pytest.raises(ArtifactError, match=r"damaged .*delete it") as caught:
        Checkpoint.read(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_files_of_two_steps_are_a_stage_error(checkpoint: Checkpoint, tmp_path: Path) -> None:
    checkpoint.write(tmp_path)
    replace(checkpoint, step=3, losses=[0.1, 0.2, 0.3]).write(tmp_path / "later")
    (tmp_path / "later" / RECORD).replace(tmp_path / RECORD)
    with pytest.raises(ArtifactError, match="not of the same step"):
        Checkpoint.read(tmp_path)


def test_a_loss_is_missing(checkpoint: Checkpoint, tmp_path: Path) -> None:
    checkpoint.losses.pop()
    checkpoint.write(tmp_path)
    with pytest.raises(ArtifactError, match="1 losses for 2 steps"):
        Checkpoint.read(tmp_path)
