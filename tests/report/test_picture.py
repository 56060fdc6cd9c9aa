from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import sylvinit
from sylvinit.errors import DataError, OptionError
from sylvinit.report import LayerReport, Report


def trained_report() -> Report:
    model = nn.Sequential(
        nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 3)
    )
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 2, 6, 6, generator=generator)
    return sylvinit.initialize_(model, (x, torch.arange(300) % 3), preset="best")


def test_spectra_are_those_of_the_input() -> None:
    x = torch.randn(200, 5, generator=torch.Generator().manual_seed(1)) * torch.arange(1.0, 6.0)
    model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
    report = sylvinit.initialize_(model, (x, torch.arange(200) % 3), preset="best", patches="all")
    values = torch.linalg.eigvalsh(x.double().T.cov(correction=0)).flip(0)
    # float32 rows: a dozen roundings of relative size 6e-8.
    expected = pytest.approx((values / values.sum()).tolist(), rel=1e-6)
    shares = report["0"].spectrum
    assert shares == pytest.approx((values / values.sum())[: len(shares)].tolist(), rel=1e-6)
    assert len(shares) == 4  # no more components than outputs are computed
    head = sylvinit.initialize_head_(
        nn.Linear(5, 3), (x, torch.arange(200) % 3), head_code="logistic"
    )
    assert head.layers[0].spectrum == expected


def test_a_wide_layer_keeps_the_leading_components() -> None:
    x = torch.randn(300, 100, generator=torch.Generator().manual_seed(1))
    model = nn.Sequential(nn.Linear(100, 90), nn.ReLU(), nn.Linear(90, 2))
    report = sylvinit.initialize_(model, (x, torch.arange(300) % 2), preset="best")
    shares = report["0"].spectrum
    assert len(shares) == 64
    assert shares == sorted(shares, reverse=True)
    assert 0.64 < sum(shares) < 1


def test_the_figure_has_a_row_for_each_layer(tmp_path: Path) -> None:
    path = tmp_path / "report.png"
    figure = trained_report().plot(path)
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    spectra, ranks, deviations = figure.axes
    assert len(spectra.get_lines()) == 2  # a normalization has none
    assert [text.get_text() for text in ranks.get_yticklabels()] == ["0", "1", "4"]
    assert {text.get_text() for text in deviations.get_yticklabels()} == {""}
    assert figure._repr_png_()[:4] == b"\x89PNG"  # type: ignore[attr-defined]


def test_what_cannot_be_drawn(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="report: expected layers that were solved"):
        Report([LayerReport("fc", "Linear", "planned")]).plot()
    with pytest.raises(OptionError, match="path: expected a suffix"):
        trained_report().plot(tmp_path / "report.xyz")
