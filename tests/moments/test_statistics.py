"""Statistics of sample means, and how much memory those of a wide layer take."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from helpers import assert_near
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import sylvinit
from sylvinit.backends import choose
from sylvinit.codes import Discriminant
from sylvinit.errors import DeviceMemoryError
from sylvinit.moments.statistics import LayerStatistics, layer_statistics, without_constant

# Relative to the largest entry: sums in two orders; the worst seen is 3e-15 (float64), 2e-7.
CLOSE = {torch.float64: 1e-12, torch.float32: 1e-5}
SAMPLES, EACH = 8, 3
BACKEND = choose("auto", torch.device("cpu"))


class LargestTensor(TorchDispatchMode):
    """The size of the largest tensor that an operation gives while the mode is on."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for item in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(item, Tensor):
                self.largest = max(self.largest, item.numel())
        return out


def rows_of_samples(groups: int, d: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Rows (groups, samples, rows of each, d) about a mean, and the samples' labels."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(SAMPLES) % 3
    x = torch.randn(groups, SAMPLES, EACH, d, generator=generator, dtype=dtype)
    return x + 2 * labels[:, None, None] + torch.arange(d) / d, labels


def statistics(x: Tensor, labels: Tensor) -> tuple[LayerStatistics, LayerStatistics]:
    groups, samples, each, d = x.shape
    moments = sylvinit.PatchMoments(d, groups=groups, classes=4)  # the last one is absent
    moments.update(x.flatten(1, 2), labels.repeat_interleave(each))
    means = sylvinit.PatchMoments(d, groups=groups, classes=4)
    means.update(x[:, : samples // 2].mean(dim=2), labels[: samples // 2])
    means.update(x[:, samples // 2 :].mean(dim=2), labels[samples // 2 :])
    stats = layer_statistics(moments, BACKEND, sample_means=means)
    assert stats.samples is not None
    return stats, stats.samples


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("d", [10, 25, 60], ids="d={}".format)
def test_sample_statistics_are_those_of_the_means(d: int, dtype: torch.dtype) -> None:
    """Back in the coordinates of the input they are NumPy's; d > 24 is in the span of the rows."""
    x, labels = rows_of_samples(2, d, dtype)
    stats, found = statistics(x, labels)
    assert (stats.basis is None) == (d == 10)
    assert found.n == SAMPLES
    assert stats.n == SAMPLES * EACH
    assert found.class_counts is not None
    assert found.class_means is not None
    assert found.class_counts.tolist() == [3, 3, 2, 0]
    for group, means in enumerate(x.double().numpy().mean(axis=2)):
        e = np.eye(d) if stats.basis is None else stats.basis[group].numpy()
        assert_near(found.mean[group].numpy() @ e, means.mean(axis=0), CLOSE[dtype])
        expected = np.cov(means.T, bias=True)
        assert_near(e.T @ found.covariance[group].numpy() @ e, expected, CLOSE[dtype])
        for c in range(3):
            expected = means[labels.numpy() == c].mean(axis=0)
            assert_near(found.class_means[group, c].numpy() @ e, expected, CLOSE[dtype])
        assert not found.class_means[group, 3].any()


def test_means_that_never_vary_have_no_covariance() -> None:
    x, labels = rows_of_samples(1, 60, torch.float64)
    stats, found = statistics(x[:, :1].expand(-1, SAMPLES, -1, -1), labels)
    assert stats.covariance.any()
    assert found.covariance.abs().max() < 1e-28 * found.mean.square().sum()


def test_a_basis_needs_means_that_are_held() -> None:
    rows = sylvinit.PatchMoments(3).update(torch.randn(2, 3))
    means = sylvinit.PatchMoments(3, classes=2).update(torch.randn(5, 3), torch.arange(5) % 2)
    with pytest.raises(ValueError, match="fewer sample means than features"):
        layer_statistics(rows, BACKEND, sample_means=means)


def test_discriminants_need_classes() -> None:
    rows, means = (sylvinit.PatchMoments(3).update(torch.randn(2, 3)) for _ in range(2))
    for stats in (
        layer_statistics(rows, BACKEND),
        layer_statistics(rows, BACKEND, sample_means=means),
    ):
        with pytest.raises(ValueError, match="need class statistics"):
            Discriminant().fit(stats, 2, seed=0)


def test_a_wide_layer_with_few_rows_makes_no_square_matrix() -> None:
    d = 5000
    x, labels = rows_of_samples(1, d, torch.float64)
    with LargestTensor() as size:
        stats, _ = statistics(x, labels)
        Discriminant().fit(stats, 4, seed=0)
    assert x.numel() <= size.largest <= 2 * x.numel()  # d * d is 200 times as much


def test_a_network_with_a_wide_layer_makes_no_square_matrix() -> None:
    d = 5000
    model = nn.Sequential(nn.Linear(4, d), nn.ReLU(), nn.Linear(d, 6), nn.ReLU(), nn.Linear(6, 3))
    x, labels = torch.randn(30, 4), torch.arange(30) % 3
    with LargestTensor() as size:
        report = sylvinit.initialize_(model, (x, labels), code={"2": "discriminant"}, patches=1)
    assert report["2"].code == "discriminant"
    assert report["2"].status == "solved"
    assert 30 * d <= size.largest < d * d / 50


@pytest.mark.parametrize(
    ("code", "d_in", "expected"),
    [
        ("pca", 500, 8 * 500 * 500),
        ("discriminant", 500, 2 * 8 * 500 * 500),
        ("pca", 2000, 8 * 600 * 2000),
        ("discriminant", 2000, 2 * 8 * 600 * 2000),
    ],
)
def test_too_little_memory_for_the_moments_names_their_size(
    code: str, d_in: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the sample means count, and 600 rows of 2000 features stay rows."""

    def no_memory(self: sylvinit.PatchMoments) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. GPU 0 has none")

    monkeypatch.setattr(sylvinit.PatchMoments, "columns", no_memory)
    model = nn.Sequential(nn.Linear(d_in, 3), nn.Linear(3, 2))
    data = (torch.randn(600, d_in), torch.arange(600) % 2)
    message = f"memory for the moments of 0: {expected / 2**20:.1f} MiB"
    with pytest.raises(DeviceMemoryError, match=message):
        sylvinit.initialize_(model, data, code=code)


@pytest.mark.parametrize("d", [10, 60], ids="d={}".format)
@pytest.mark.parametrize("repeated", [False, True], ids=["", "repeated"])
def test_without_the_constant(d: int, repeated: bool) -> None:
    """In the coordinates of the input: NumPy's statistics of rows without their means."""
    x, labels = rows_of_samples(2, d, torch.float64)
    if repeated:
        x = x[:, :, :1].expand(-1, -1, EACH, -1)
    stats = without_constant(statistics(x, labels)[0])
    centered = x - x.mean(dim=-1, keepdim=True)
    assert stats.class_means is not None
    assert stats.samples is not None
    for group, rows in enumerate(centered.numpy()):
        e = np.eye(d) if stats.basis is None else stats.basis[group].numpy()
        assert_near(e @ e.T, np.eye(len(e)), CLOSE[torch.float64])
        parts = (stats, rows.reshape(-1, d)), (stats.samples, rows.mean(axis=1))
        for found, expected in parts:
            covariance = e.T @ found.covariance[group].numpy() @ e
            assert_near(covariance, np.cov(expected.T, bias=True), CLOSE[torch.float64])
            assert_near(found.mean[group].numpy() @ e, expected.mean(axis=0), CLOSE[torch.float64])
        expected = rows[labels.numpy() == 1].reshape(-1, d).mean(axis=0)
        assert_near(stats.class_means[group, 1].numpy() @ e, expected, CLOSE[torch.float64])
        rows = rows.reshape(-1, d)
        assert_near(stats.input_mean[group].numpy(), rows.mean(axis=0), CLOSE[torch.float64])
        assert_near(stats.feature_variances[group].numpy(), rows.var(axis=0), CLOSE[torch.float64])
        variances = stats.variances(torch.eye(d).double()[None, :3].expand(2, -1, -1))
        assert_near(variances[group].numpy(), rows.var(axis=0)[:3], CLOSE[torch.float64])


@pytest.mark.parametrize("changed", [False, True])
@pytest.mark.parametrize("d", [10, 60], ids="d={}".format)
def test_moments_of_targets(d: int, changed: bool) -> None:
    """With more and with fewer rows than features, with the constant and without."""
    x = rows_of_samples(2, d, torch.float64)[0].flatten(1, 2)
    s = torch.randn(x.shape[1], 3, generator=torch.Generator().manual_seed(1)).double()
    moments = sylvinit.PatchMoments(d, groups=2, targets=3).update(x, s)
    stats = layer_statistics(moments, BACKEND)
    if changed:
        stats, x = without_constant(stats), x - x.mean(dim=2, keepdim=True)
    assert stats.class_counts is None
    assert stats.class_means is None
    for group, part in enumerate((stats.group(0), stats.group(1))):
        found = part.targets
        assert found is not None
        cross = part.in_input_coordinates(found.cross)[0]
        assert_near(cross.numpy(), s.numpy().T @ x[group].numpy() / len(s), CLOSE[torch.float64])
        assert_near(found.second.numpy(), s.numpy().T @ s.numpy() / len(s), CLOSE[torch.float64])
        assert_near(found.mean.numpy(), s.numpy().mean(axis=0), CLOSE[torch.float64])


@pytest.mark.parametrize("scale", [1e-30, 1e30])
@pytest.mark.parametrize("n", [40, 9])
def test_variances_of_float32_products_do_not_overflow(n: int, scale: float) -> None:
    """Rows in float32 whose squares have no room there, with moments as those of few features."""
    x = scale * torch.randn(n, 10, generator=torch.Generator().manual_seed(0))
    moments = sylvinit.PatchMoments(10, precision=torch.float64).update(x)
    weight = torch.randn(1, 4, 10, generator=torch.Generator().manual_seed(1))
    found = layer_statistics(moments, BACKEND).variances(weight)[0]
    expected = (x.double() @ weight[0].double().mT).var(dim=0, correction=0)
    torch.testing.assert_close(found, expected, rtol=CLOSE[torch.float32], atol=0)


def test_the_constant_leaves_its_rounding_behind() -> None:
    """float32 rows that vary along the constant, a hundred times as much as otherwise or alone."""
    generator = torch.Generator().manual_seed(0)
    level = 100 * torch.randn(400, 1, generator=generator)
    for texture, rank in ((0.0, 0), (1.0, 9)):
        rows = level + texture * torch.randn(400, 10, generator=generator)
        moments = sylvinit.PatchMoments(10).update(rows)
        assert without_constant(layer_statistics(moments, BACKEND)).rank() == rank
