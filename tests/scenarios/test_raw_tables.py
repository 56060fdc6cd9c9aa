"""Tables as they come: columns of very different scales, few features, many rows."""

from __future__ import annotations

import copy
import warnings
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sylvinit

ROWS, COLUMNS = 5000, 9


def table(scale: float, offset: float = 0.0) -> tuple[Tensor, Tensor]:
    """Nine columns, of which the first is a price, an area or a time; the others say the class."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(ROWS, COLUMNS, generator=generator)
    y = (x[:, 1] - x[:, 2] + x[:, 3] / 2 > 0).long()
    x[:, 0] = offset + scale * torch.rand(ROWS, generator=generator)
    return x, y


def perceptron() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(COLUMNS, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2)
    )


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return float((model(x).argmax(dim=1) == y).double().mean())


@pytest.mark.parametrize(
    ("preset", "scale"),
    [
        *((preset, scale) for preset in ("best", "frozen") for scale in (1e3, 1e4, 1e5)),
        ("paper", 1e3),  # its rows are not scaled: deeper layers see the large column, too
    ],
)
def test_a_column_of_another_scale(preset: str, scale: float) -> None:
    """With products in float32 all columns but the large one counted as rounding: 51 % right."""
    x, y = table(scale)
    model, exact = perceptron(), perceptron().double()
    report = sylvinit.initialize_(model, (x, y), preset=preset, progress=False)
    expected = sylvinit.initialize_(exact, (x.double(), y), preset=preset, progress=False)
    assert report.layers[0].rank == expected.layers[0].rank == COLUMNS
    # 0.82 to 0.98 here, 0.82 to 0.98 in float64.
    assert accuracy(model, x, y) > 0.75


def test_a_time_stamp_among_the_features_of_a_solved_head() -> None:
    """Outputs had a standard deviation of 1e17, from variances that were rounding."""
    x, y = table(3e7, offset=1.6e9)
    model = perceptron()
    sylvinit.initialize_head_(model, (x, y), progress=False)
    with torch.no_grad():
        assert float(model(x).std(dim=0).max()) < 1  # one-hot codes have 0.5


@pytest.mark.parametrize("seed", [23, 26])
def test_counts_of_heavy_tails(seed: int) -> None:
    """Refused, with products in float32: eigenvalues further below zero than rounding explains."""
    rng = np.random.default_rng(seed)
    counts = [rng.lognormal(6, sigma, 2000).round() for sigma in (2.5, 3)]
    x = torch.tensor(np.c_[counts[0], counts[1], rng.random((2000, 12))], dtype=torch.float32)
    y = (x[:, 2] + x[:, 3] > 1).long()
    torch.manual_seed(seed)
    widths = [14, 16, 16, 16, 16]
    layers: list[nn.Module] = []
    for a, b in pairwise(widths):
        layers += [nn.Linear(a, b), nn.ELU()]
    model = nn.Sequential(*layers, nn.Linear(16, 2))
    sylvinit.initialize_(model, (x, y), preset="paper", progress=False)
    with torch.no_grad():
        assert float(model(x).std(dim=0).max()) < 5


@pytest.mark.parametrize(
    ("dtype", "offset", "tolerance"),
    [
        # The worst seen are 1e-7, 2e-6, 1.5e-5 and 1.5e-4; 2e-3 and 3e-4 for halves.
        *((torch.float32, offset, 1e-6 * max(offset, 1)) for offset in (0.0, 100.0, 1e3, 1e4)),
        (torch.bfloat16, 0.0, 1e-2),
        (torch.float16, 0.0, 1e-3),
    ],
    ids=str,
)
@pytest.mark.parametrize(("rank", "width"), [(3, 8), (3, 32), (5, 128)])
def test_rounding_of_activations_is_no_rank(
    rank: int, width: int, dtype: torch.dtype, offset: float, tolerance: float
) -> None:
    """What layers leave after a mean was subtracted is rounding to that mean's extent."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(rank, width), nn.Linear(width, 16), nn.Linear(16, 3)).to(dtype)
    x = (torch.randn(3000, rank) + offset).to(dtype)
    report = sylvinit.initialize_(model, x, preset="best", progress=False)
    ranks = [layer.rank for layer in report.layers]
    assert max(ranks) <= rank
    # Up to 0.5 here; 1e3 to 3e4 where rounding is taken for a component.
    assert max(float(p.abs().max()) for p in model[1:].parameters()) < 5
    with torch.no_grad():
        exact = copy.deepcopy(model).double()(x.double())
        error = float((model(x).double() - exact).norm() / exact.norm())
    assert error < tolerance


@pytest.mark.parametrize("offset", [0.0, 3.0])
@pytest.mark.parametrize("activation", [nn.GELU, nn.Tanh])
def test_tiny_curvature_gets_no_huge_weights(activation: type[nn.Module], offset: float) -> None:
    torch.manual_seed(0)
    x = torch.randn(3000, 3) + offset
    y = ((x - offset).norm(dim=1) > 1.5).long()
    layers = (nn.Linear(3, 32), activation(), nn.Linear(32, 32), activation(), nn.Linear(32, 2))
    model = nn.Sequential(*layers)
    sylvinit.initialize_(model, (x, y), preset="best", progress=False)
    # Up to 144 here; thousands where components of 1e-9 of the largest variance are scaled up.
    assert max(float(p.abs().max()) for p in model.parameters()) < 300


def embeddings(length: float) -> tuple[Tensor, Tensor]:
    """Two classes of which one is rarer, in 384 dimensions, all of one length."""
    generator = torch.Generator().manual_seed(0)
    y = (torch.rand(3000, generator=generator) < 0.4).long()
    x = torch.randn(3000, 384, generator=generator)
    x += 0.15 * torch.randn(2, 384, generator=generator)[y]
    x += 0.5 * torch.randn(384, generator=generator)
    return length * nn.functional.normalize(x, dim=1), y


def warned(head: nn.Linear, x: Tensor, y: Tensor, **settings: Any) -> list[str]:
    """The warnings of solving a head."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sylvinit.SylvinitWarning)
        report = sylvinit.initialize_head_(head, (x, y), progress=False, **settings)
    return [text for text in report.warnings if "features" in text and "fewer" not in text]


def test_embeddings_of_norm_1_are_too_small_for_a_one_hot_head() -> None:
    x, y = embeddings(1.0)
    head = nn.Linear(384, 2)
    (text,) = warned(head, x, y)
    assert "features too small for lam" in text
    assert accuracy(head, x, y) < 0.85
    assert warned(head, x, y, lam=1000.0) == []
    assert accuracy(head, x, y) > 0.95
    assert warned(head, x, y, head_code="logistic") == []
    assert accuracy(head, x, y) > 0.95
    x, y = embeddings(384**0.5)
    assert warned(head, x, y) == []
    assert accuracy(head, x, y) > 0.95


def test_a_logistic_head_wants_features_of_like_scale() -> None:
    for scale, fine in ((1e2, True), (1e4, False)):
        x, y = table(scale)
        head = nn.Linear(COLUMNS, 2)
        found = warned(head, x, y, head_code="logistic")
        assert [("features of unlike scale" in text) for text in found] == [True] * (not fine)
        assert (accuracy(head, x, y) > 0.95) == fine
    assert warned(head, x, y) == []
    assert accuracy(head, x, y) > 0.95
    standardized = (x - x.mean(dim=0)) / x.std(dim=0)
    assert warned(head, standardized, y, head_code="logistic") == []
    assert accuracy(head, standardized, y) > 0.95
