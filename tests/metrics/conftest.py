from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from harness.metrics.encoder import Encoder


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.metrics.tiny import tiny_clip

    return tiny_clip(tmp_path_factory.mktemp("clip") / "tiny")


@pytest.fixture(scope="session")
def encoder(clip_folder: Path) -> "Encoder":
    from harness.metrics.encoder import Encoder

    return Encoder(f"local-dir:{clip_folder}", device="cpu")
