"""One example sweep for the tests that only read it, and a browser."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.results import Results
from harness.results.study import Study
from tests.reporting.report import example
from tests.reporting.report.browser import Page, chromium


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workspace of `results`. Tests only read it."""
    return tmp_path_factory.mktemp("report") / "workspace"


@pytest.fixture(scope="session")
def results(workspace: Path) -> Results:
    """2 recipes × 2 ranks × 3 step counts with a real effect; trial 2 failed."""
    return example.build(workspace, example.config(steps=(50, 100, 200)), gain=0.6)


@pytest.fixture(scope="session")
def study(results: Results) -> Study:
    """The same, as the report sees it."""
    return Study(results)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """A page of a real Chromium. Only for tests that are skipped where there is none."""
    with chromium(tmp_path_factory.mktemp("profile")) as page:
        yield page
