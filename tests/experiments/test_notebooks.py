"""Every notebook of the experiments runs from its first to its last cell, on a sweep that the tests make."""

from pathlib import Path
from typing import Any

import jupytext
import nbclient
import nbformat
import pytest

from tests.reporting.report import example

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "experiments").glob("*/analysis.py"))
FIGURES = ("heat_map", "dose_response", "forest", "parallel_coordinates", "slopes", "metric_by_metric")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workspace = tmp_path_factory.mktemp("notebooks")
    example.build(workspace, example.config(n_prompts=24, seeds=(0, 1)), gain=0.6)
    return workspace / "sweeps" / "example"


def outputs(notebook: Any) -> list[dict[str, Any]]:
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


@pytest.mark.slow
@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.parent.name)
def test_it_runs(file: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWEEP", str(folder))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    notebook = jupytext.read(file)
    ran = nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3").execute(cwd=str(file.parent))
    found = outputs(ran)
    assert not [output for output in found if output["output_type"] in ("error", "stream")]
    source = "\n".join(cell.source for cell in ran.cells)
    assert all(f"plot.{name}" in source for name in FIGURES) and "duckdb.sql" in source
    images = [output for output in found if "image/png" in output.get("data", {})]
    assert len(images) == 10  # two heat maps, seven more figures, the losses
    first = next(output for output in found if "text/html" in output.get("data", {}))
    assert "against each control" in first["data"]["text/html"]


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.parent.name)
def test_the_executed_notebook_is_of_these_cells(file: Path) -> None:
    executed = nbformat.read(file.with_suffix(".ipynb"), as_version=4)
    assert [cell.source for cell in executed.cells] == [cell.source for cell in jupytext.read(file).cells]
    found = outputs(executed)
    assert not [output for output in found if output["output_type"] in ("error", "stream")]
    assert len([output for output in found if "image/png" in output.get("data", {})]) == 10
    assert file.with_suffix(".ipynb").stat().st_size < 2_000_000


def test_there_is_a_notebook() -> None:
    assert [file.parent.name for file in NOTEBOOKS] == ["001_quickstart"]
