"""Networks, data and calls for the tests of preset "auto"."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

import sylvinit
from sylvinit.report import Report


def auto(model: nn.Module, data: Any, **options: Any) -> Report:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sylvinit.SylvinitWarning)
        return sylvinit.initialize_(model, data, **options)


def chosen(report: Report) -> str:
    names = [candidate.name for candidate in report.candidates if candidate.chosen]
    assert len(names) == 1
    return names[0]


def noisy_classes(*, loud: str, n: int = 200) -> tuple[Tensor, Tensor]:
    """Four columns of signal and eight of noise; the one that is loud is what components find."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % 4
    signal = torch.eye(4)[labels] + 0.05 * torch.randn(n, 4, generator=generator)
    noise = torch.randn(n, 8, generator=generator)
    gains = {"noise": (0.1, 10.0), "signal": (10.0, 0.1)}[loud]
    return torch.cat((gains[0] * signal, gains[1] * noise), dim=1), labels


class Normalized(nn.Module):
    """Batch norm behind features of very different size."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(12, 8)
        self.norm = nn.BatchNorm1d(8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.body(x)).relu())


class Fixed(nn.Module):
    """Features that tell the classes, behind a first layer that only its own start passes on.

    The inputs are (signal, loud noise); the own first layer reads the signal, and the principal
    components of the data are the noise.
    """

    def __init__(self, *, reads_signal: bool) -> None:
        super().__init__()
        self.body = nn.Linear(12, 4)
        self.head = nn.Linear(4, 4)
        with torch.no_grad():
            self.body.weight.zero_()
            self.body.bias.zero_()
            first = 0 if reads_signal else 4
            self.body.weight[:, first : first + 4] = torch.eye(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))
