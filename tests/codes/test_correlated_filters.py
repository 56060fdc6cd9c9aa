"""Correlated filters as a code: drawn as they should be, and the layer's equation solved for it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from correlation_problems import random_correlation, smooth_correlation
from driver_helpers import (
    assert_identical,
    images,
    initialized,
    relative_difference,
    small_net,
    unchanged,
)
from equation_checks import CLOSE, check_rows, inputs_of
from helpers import layer_patches, weight_matrix
from torch import Tensor, nn

import sylvinit
from sylvinit import priors
from sylvinit.backends import choose
from sylvinit.codes import CorrelatedFilters, Latent, available_codes, get_code
from sylvinit.correlated import fit_distance_model, scale_correlation
from sylvinit.errors import CorrelationError, DataError, OptionError, OptionTypeError
from sylvinit.moments.statistics import LayerStatistics, layer_statistics

PRIOR = priors.load("resnet10-cifar10")


@dataclass(frozen=True)
class Recording(CorrelatedFilters):
    """The code itself, and what it was asked and answered."""

    seen: list[tuple[LayerStatistics, Latent, Tensor]] = field(default_factory=list)

    def fit(self, stats: LayerStatistics, k: int, seed: int) -> Latent:
        latent = super().fit(stats, k, seed)
        self.seen.append((stats, latent, self._matrix(stats)))
        return latent


def smooth(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*shape, generator=generator, dtype=torch.float64)
    return x + 0.8 * x.roll(1, dims=-1) + 0.3 * x.roll(1, dims=2) + 0.2


def statistics(
    kernel: tuple[int, ...], channels: int, groups: int = 1, samples: int = 400
) -> LayerStatistics:
    """Of patches that are correlated over taps, in another way for every channel."""
    generator = np.random.default_rng(1)
    taps = int(np.prod(kernel)) if kernel else 1
    features = channels * taps
    x = generator.normal(size=(groups, samples, features)) @ generator.normal(
        size=(features, features)
    )
    moments = sylvinit.PatchMoments(features, groups=groups)
    moments.update(torch.from_numpy(x))
    backend = choose("auto", torch.device("cpu"))
    return layer_statistics(moments, backend, reduce=False, kernel=kernel)


# ----------------------------------------------------------------------------------- the encoder


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(
    ("kernel", "channels", "groups"), [((3, 3), 2, 1), ((5,), 3, 2), ((2, 1, 2), 1, 3)]
)
def test_rows_are_filters_of_the_matrix(
    kernel: tuple[int, ...], channels: int, groups: int, strength: float
) -> None:
    """C z for every channel, taps fastest, then unit length: the same white numbers by loops."""
    taps = int(np.prod(kernel))
    corr = random_correlation(taps, 3)
    latent = CorrelatedFilters(corr, strength).fit(statistics(kernel, channels, groups), 7, seed=5)
    lower = np.linalg.cholesky(strength * corr + (1 - strength) * np.eye(taps))
    white = np.random.default_rng(5).standard_normal((groups, 7, channels, taps))
    assert latent.encoder is not None
    assert latent.encoder.shape == (groups, 7, channels * taps)
    for group in range(groups):
        for row in range(7):
            filters = np.stack([lower @ white[group, row, c] for c in range(channels)])
            expected = filters.ravel() / np.linalg.norm(filters)
            found = latent.encoder[group, row].numpy()
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-13)


def test_the_correlation_of_many_rows() -> None:
    """100,000 filters in rows of 200 channels.

    Unit length multiplies a row by a factor that varies by 3 %, which the correlation does not
    notice: within 4 standard errors, and 1 / 200 for what it might.
    """
    corr = smooth_correlation((2, 3))
    code = CorrelatedFilters(
        sylvinit.correlated.FilterCorrelation.of(torch.from_numpy(corr), (2, 3))
    )
    encoder = code.fit(statistics((2, 3), 200, samples=5), 500, seed=0).encoder
    assert encoder is not None
    found = np.corrcoef(encoder.reshape(-1, 6).numpy(), rowvar=False)
    assert (np.abs(found - corr) <= 4 * (1 - corr**2) / np.sqrt(100_000) + 1 / 200).all()


def test_rows_and_single_taps_are_white() -> None:
    for kernel in ((), (1, 1)):
        code = CorrelatedFilters(PRIOR)
        encoder = code.fit(statistics(kernel, 5), 3, seed=2).encoder
        white = np.random.default_rng(2).standard_normal((1, 3, 5, 1))[..., 0]
        expected = white / np.linalg.norm(white, axis=-1, keepdims=True)
        assert encoder is not None
        np.testing.assert_allclose(encoder.numpy(), expected, rtol=0, atol=1e-15)


def test_the_matrix_of_the_layers_own_input() -> None:
    code = Recording()
    conv = nn.Conv2d(4, 6, (2, 3), stride=(1, 2), padding=1, groups=2).double()
    x = smooth(9, 4, 7, 8)
    patches = layer_patches(conv, x)
    sylvinit.initialize_(conv, x, code=code, head_code=code, patches="all")
    ((stats, latent, matrix),) = code.seen
    assert stats.kernel == (2, 3)
    groups, samples, positions, features = patches.shape
    rows = patches.reshape(groups, samples * positions, features)
    covariances = [np.cov(rows[g], rowvar=False, bias=True) for g in range(groups)]
    mean = sum(c[a * 6 : a * 6 + 6, a * 6 : a * 6 + 6] for c in covariances for a in range(2))
    deviation = np.sqrt(np.diag(mean))
    expected = mean / deviation[:, None] / deviation
    np.testing.assert_allclose(matrix.numpy(), expected, rtol=0, atol=CLOSE)
    assert latent.encoder is not None
    for group in range(groups):
        s = latent.encoder[group].numpy() @ (rows[group].T - rows[group].mean(axis=0)[:, None])
        moment = s @ s.T / s.shape[1]
        np.testing.assert_allclose(latent.second_moment[group].numpy(), moment, rtol=0, atol=CLOSE)


# ------------------------------------------------------------------------------ through the driver


class Several(nn.Module):
    """Kernels of several sizes, a depthwise and a transposed layer, a pointwise one and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.three = nn.Conv2d(3, 8, 3, padding=1)
        self.five = nn.Conv2d(8, 8, 5, padding=2, groups=8)
        self.point = nn.Conv2d(8, 12, 1)
        self.wide = nn.Conv2d(12, 4, (1, 3), bias=False)
        self.up = nn.ConvTranspose2d(4, 3, 2, stride=2)
        self.head = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.five(self.three(x).relu()).relu()
        x = self.up(self.wide(self.point(x).relu()).relu())
        return self.head(x.relu().mean(dim=(2, 3)))


def several() -> nn.Module:
    torch.manual_seed(0)
    return Several().double()


@pytest.mark.parametrize("corr", [None, "resnet10-cifar10"])
@pytest.mark.parametrize("strength", [1.0, 0.3])
def test_every_layer_solves_its_equation(corr: Any, strength: float) -> None:
    with torch.random.fork_rng(devices=[]):
        model = several()
    x, labels = images(40, dtype=torch.float64)
    code = Recording(corr, strength)
    report = sylvinit.initialize_(
        model,
        (x, labels),
        preset="paper",
        code=code,
        head="head",
        patches="all",
        lam=5.0,
        microbatch=40,
    )
    names = ["three", "five", "point", "wide", "up"]
    assert [layer.code for layer in report.layers] == ["correlated"] * 5 + ["onehot"]
    seen, checked = iter(code.seen), 0
    for name in names:
        layer = model.get_submodule(name)
        patches = layer_patches(layer, inputs_of(model, layer, x)[0])
        groups, samples, positions, features = patches.shape
        rows = patches.reshape(groups, samples * positions, features)
        _, latent, matrix = next(seen)
        assert latent.encoder is not None
        weight = weight_matrix(layer)
        for group in range(groups):
            columns = rows[group].T
            s = latent.encoder[group].numpy() @ (columns - columns.mean(axis=1, keepdims=True))
            if name != "point":  # 12 outputs of 8 channels: the driver fills up what is missing
                check_rows(weight[group], None, columns, s, 5.0)
                checked += 1
        assert report[name].residual < 1e-13
        if corr is not None and name != "point":
            expected = (
                PRIOR if name == "three" else fit_distance_model(PRIOR).matrix(layer.kernel_size)
            )
            torch.testing.assert_close(
                matrix, scale_correlation(expected, strength), rtol=0, atol=0
            )
    assert checked == 1 + 8 + 1 + 1  # groups


def test_seeds() -> None:
    data = images(30)
    first = initialized(small_net(), data, code="correlated", seed=3)
    assert_identical(first, initialized(small_net(), data, code="correlated", seed=3))
    other = initialized(small_net(), data, code="correlated", seed=4)
    assert relative_difference(first["conv1.weight"], other["conv1.weight"]) > 0.1
    with unchanged(small_net()):
        initialized(small_net(), data, code="correlated")


def test_by_name_and_by_layer(tmp_path: Path) -> None:
    assert "correlated" in available_codes()
    assert get_code("correlated") == CorrelatedFilters()
    priors.save(PRIOR, tmp_path / "mine.txt")
    data = images(30)
    made = [
        initialized(small_net(), data, code={"conv2": CorrelatedFilters(corr)})
        for corr in (PRIOR, "resnet10-cifar10", str(tmp_path / "mine.txt"), tmp_path / "mine.txt")
    ]
    for weights in made[1:]:
        assert_identical(made[0], weights)
    plain = initialized(small_net(), data)
    assert_identical(
        {"conv1.weight": plain["conv1.weight"]}, {"conv1.weight": made[0]["conv1.weight"]}
    )
    report = sylvinit.initialize_(small_net(), data, code={"conv2": "correlated"})
    assert [report[name].code for name in ("conv1", "conv2")] == ["pca", "correlated"]
    assert report["conv2"].residual < 1e-6  # of a float32 model


def test_a_plain_matrix_of_another_kernel() -> None:
    """Of as many taps as the layer has: the layer's own, not one of a square kernel."""
    code = Recording(smooth_correlation((9,)))
    conv = nn.Conv1d(2, 3, 9).double()
    sylvinit.initialize_(conv, smooth(20, 2, 30), code=code, head_code=code)
    ((_, _, matrix),) = code.seen
    np.testing.assert_array_equal(matrix.numpy(), smooth_correlation((9,)))


def test_more_rows_than_features() -> None:
    conv = nn.Conv2d(1, 40, 3).double()
    report = sylvinit.initialize_(
        conv, smooth(30, 1, 8, 8), code="correlated", head_code="correlated", patches="all"
    )
    assert report[""].residual < 1e-12
    assert bool(conv.weight.isfinite().all())
    assert np.linalg.matrix_rank(conv.weight.detach().reshape(40, 9).numpy()) == 9


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((2 * np.eye(9),), CorrelationError, "ones on the diagonal"),
        ((3,), CorrelationError, "square matrix"),
        ((object(),), OptionTypeError, "corr must be a matrix"),
        (("resnet11",), OptionError, "expected one of"),
        (("missing.txt",), DataError, "cannot read"),
        ((PRIOR, -1.0), OptionError, "strength must be finite and at least 0"),
        ((PRIOR, np.nan), OptionError, "strength must be finite"),
        ((None, "1"), OptionTypeError, "strength must be a number"),
    ],
)
def test_bad_input(arguments: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        CorrelatedFilters(*arguments)


def test_a_matrix_that_fits_no_kernel() -> None:
    model = small_net()
    code = {"conv2": CorrelatedFilters(np.eye(8))}
    with unchanged(model), pytest.raises(CorrelationError, match="8 taps belongs to no square"):
        sylvinit.initialize_(model, images(20), code=code)
