"""What every test of an executor needs."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from harness.config.loading.load import load_sweep
from harness.config.plan.plan import Plan, expand
from harness.config.schema.model import SdxlModel
from harness.results import Results
from tests.engine.executors.carrying import carry_out
from tests.engine.executors.disturbing import CHANGES
from tests.sweeps.small import write_sweep


@pytest.fixture
def one_thread() -> Iterator[None]:
    """The threads that a Ray worker of one CPU uses: sums are added up in the same order here and there."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def long_sweep(tmp_path_factory: pytest.TempPathFactory, tiny_config: SdxlModel, tiny_clip: str) -> Path:
    """The YAML of a sweep that can be disturbed in its one training run."""
    return write_sweep(tmp_path_factory.mktemp("sweep") / "small.yaml", tiny_config, tiny_clip, **CHANGES)


@pytest.fixture(scope="session")
def long_plan(long_sweep: Path) -> Plan:
    """The same, read."""
    return expand(load_sweep(long_sweep))


@pytest.fixture(scope="session")
def undisturbed(long_plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> Results:
    """What becomes of it when nothing happens; made once for all who compare with it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as the workers have
    try:
        return carry_out(long_plan, tmp_path_factory.mktemp("undisturbed"), "local").results
    finally:
        torch.set_num_threads(before)
