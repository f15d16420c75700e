import subprocess
import sys
from pathlib import Path

import pytest
import torch

from harness.diffusion.training.checkpoint import Checkpoint
from harness.diffusion.training.distributed import share
from harness.errors import TrainingError
from tests.diffusion.training.runs import Trainer, same, write_images
from tests.diffusion.training.worker import RUNS
from tests.limits import HANGS

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(("rows", "size"), [(8, 1), (8, 2), (3, 2), (7, 4), (4, 4)])
def test_every_row_is_one_processs(rows: int, size: int) -> None:
    shares = [share(rows, rank=rank, size=size) for rank in range(size)]
    assert [row for part in shares for row in part] == list(range(rows))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process and two processes make of the same runs, the three of them at once."""
    folder = tmp_path_factory.mktemp("parallel")
    write_images(folder / "images", seed=0)
    write_images(folder / "class", seed=1)
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.diffusion.training.worker", str(rank), str(size), str(folder)],
            cwd=ROOT,
        )
        for rank, size in ((0, 1), (0, 2), (1, 2))
    ]
    try:
        assert [process.wait(timeout=HANGS) for process in started] == [0, 0, 0]
    finally:
        for process in started:
            process.kill()
    return folder


def test_two_processes_equal_one_bit_for_bit_where_a_row_is_a_pass(trained: Path) -> None:
    for step in ("1", "2"):
        one, two = (Checkpoint.read(trained / name / "rows" / step) for name in ("1-0", "2-0"))
        assert same(one, two)
        assert one.validation == two.validation


def test_two_processes_equal_one_up_to_rounding(trained: Path) -> None:
    one, two = (Checkpoint.read(trained / name / "passes" / "2") for name in ("1-0", "2-0"))
    assert two.losses == pytest.approx(one.losses, rel=1e-4)
    moments = [name for name in one.optimizer if name.endswith(".exp_avg")]
    flat = [torch.cat([c.optimizer[name].flatten() for name in moments]) for c in (one, two)]
    assert torch.cosine_similarity(flat[0], flat[1], dim=0) > 0.9999
    assert flat[1].norm() == pytest.approx(float(flat[0].norm()), rel=1e-3)


def test_the_first_process_alone_saves_and_reports(trained: Path) -> None:
    for key in RUNS:
        assert (trained / "2-0" / f"{key}.reported").read_text() == "1\n2\n"
        assert (trained / "2-1" / f"{key}.reported").read_text() == ""
        assert not (trained / "2-1" / key).exists()


def test_more_processes_than_rows_are_an_error(
    run_training: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.diffusion.training.loop.rank_and_size", lambda: (0, 4))
    with pytest.raises(TrainingError, match=r"4 processes train 2 rows .*training\.batch_size"):
        run_training(batch_size=2)
