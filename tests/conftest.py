"""What several rooms' tests share: a tiny SDXL with random weights, made once and loaded by the real code."""

import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

# Tests run side by side, one per core, and their models are too small for a second thread to help.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# By itself Ray's workers give way to all else (niceness 15), so beside other tests they would hardly begin.
os.environ.setdefault("RAY_worker_niceness", "0")

from harness.config.schema.model import SdxlModel

if TYPE_CHECKING:
    from harness.diffusion.models.model import Model


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model in SDXL's folder layout, its refiner beside it. Tests only read it."""
    from tests.diffusion.tiny import tiny_sdxl

    return tiny_sdxl(tmp_path_factory.mktemp("tiny") / "sdxl")


@pytest.fixture(scope="session")
def tiny_config(tiny_folder: Path) -> SdxlModel:
    """The specification of the tiny model with its refiner."""
    from tests.diffusion import tiny

    return tiny.tiny_config(tiny_folder)


@pytest.fixture(scope="session")
def tiny_model(tiny_config: SdxlModel) -> "Model":
    """The tiny model, loaded once on the CPU. A test leaves it as it found it."""
    from harness.diffusion.models import load_model

    return load_model(tiny_config, device="cpu")


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The `encoder` of a tiny CLIP with random weights, as a sweep names it."""
    from tests.metrics import tiny

    return f"local-dir:{tiny.tiny_clip(tmp_path_factory.mktemp('clip') / 'tiny')}"


@pytest.fixture(scope="session")
def s3_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real S3 server on loopback; without it, what needs it is skipped."""
    from tests.store.server import s3_server

    with s3_server(tmp_path_factory.mktemp("s3")) as endpoint:
        yield endpoint


@pytest.fixture
def s3(s3_endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """URL of an empty workspace on it. The environment has the credentials, and a cache of the test's own."""
    from tests.store import server

    for name, value in server.environment(s3_endpoint).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HARNESS_LEASE_SECONDS", "6")
    return f"s3://{server.BUCKET}/{uuid.uuid4().hex[:8]}"
