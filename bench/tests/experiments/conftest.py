"""The packages of bench/experiments, which runs as a script with its own folder on the path."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

FOLDER = str(Path(__file__).parents[3] / "bench" / "experiments")
if FOLDER not in sys.path:
    sys.path.insert(0, FOLDER)


@pytest.fixture
def data() -> tuple[Tensor, Tensor]:
    """Images of which neighbouring pixels are alike, in four classes."""
    generator = torch.Generator().manual_seed(7)
    coarse = torch.randn(96, 3, 4, 4, generator=generator)
    labels = torch.arange(96) % 4
    images = F.interpolate(coarse, scale_factor=2.0, mode="bilinear") + labels.view(-1, 1, 1, 1) / 2
    return images, labels
