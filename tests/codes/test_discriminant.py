"""Discriminant codes and sign pairs, against explicit patches, SciPy and the doubled equation."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import scipy.linalg
import torch
from helpers import (
    Array,
    chosen_rows,
    equation,
    fix_signs,
    layer_patches,
    principal_axes,
    relative_defect,
    single_thread,
    unexplained,
    weight_matrix,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import sylvinit
from sylvinit.codes import PCA, Discriminant, SignPairs
from sylvinit.errors import LabelError, OptionError

SAMPLES, CLASSES, LAM = 40, 3, 10.0
# Float64 from end to end. The worst seen over 300 examples is 2e-13, of a layer's largest entry;
# 1e-9 leaves room for directions whose eigenvalues nearly meet.
CLOSE = 1e-9


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    with single_thread():
        yield


def data(channels: int, size: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Images whose classes differ in more than their mean pixel."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(SAMPLES) % CLASSES
    x = torch.randn(SAMPLES, channels, size, size, generator=generator, dtype=torch.float64)
    pattern = torch.randn(CLASSES, channels, size, size, generator=generator, dtype=torch.float64)
    return x + pattern[labels] + 0.5, labels


def expected_code(
    columns: Array, sample: Array, labels: Array, k: int, prior: float, shrink: float
) -> Array:
    """E (k, d), from every row and its sample, by the definition in the docstring."""
    n = columns.shape[1]
    ids = np.unique(sample)
    means = np.stack([columns[:, sample == i].mean(axis=1) for i in ids], axis=1)
    rows = n / len(ids)
    spread = means - means.mean(axis=1, keepdims=True)
    metric = spread @ spread.T / len(ids)
    total = np.cov(columns, bias=True).reshape(len(columns), -1)
    if len(set(np.bincount(sample)[ids])) == 1:
        own = columns - means[:, np.searchsorted(ids, sample)]
        inside = own @ own.T / n * rows / max(rows - 1, 1)
    else:
        inside = (total - metric) * rows / (rows - 1)
    ridge = shrink * np.trace(total) / len(total) * np.eye(len(total))
    metric = metric + prior / len(ids) * (inside + ridge)
    of = labels[ids]
    centers = np.stack([spread[:, of == c].mean(axis=1) for c in np.unique(of)], axis=1)
    counts = np.array([(of == c).sum() for c in np.unique(of)])
    between = (centers * counts) @ centers.T / len(ids)
    _, vectors = scipy.linalg.eigh(between, metric)
    e = vectors[:, ::-1].T[: min(k, len(counts) - 1)]
    e = fix_signs(e / np.linalg.norm(e, axis=1, keepdims=True))
    centerd = columns - columns.mean(axis=1, keepdims=True)
    rest = unexplained(columns, e @ centerd)
    largest = np.linalg.eigvalsh(np.cov(columns, bias=True).reshape(len(columns), -1))[-1]
    return np.concatenate((e, principal_axes(rest, k - len(e), scale=largest)))


def solution(a: Array, b: Array, q: Array) -> Array:
    return scipy.linalg.solve_sylvester(a, b, q)


CONVOLUTIONS = [
    nn.Conv2d(3, 4, 3, padding=1),
    nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=False),
    nn.Conv2d(4, 6, (2, 3), dilation=(1, 2), groups=2),
    nn.Conv2d(3, 4, 2, padding="same", padding_mode="reflect"),
    nn.ConvTranspose2d(3, 2, 2, stride=2),  # its components are degenerate: each tap sees the same
]


@pytest.mark.parametrize("conv", CONVOLUTIONS, ids=str)
@pytest.mark.parametrize("patches", [5, "all"])
def test_weights_are_those_of_the_definition(conv: nn.Module, patches: int | str) -> None:
    x, labels = data(conv.in_channels, 7)  # type: ignore[arg-type]
    model = nn.Sequential(conv, nn.Flatten(), nn.LazyLinear(2)).double()
    code = Discriminant(prior=20, shrink=0.05)
    report = sylvinit.initialize_(
        model,
        (x, labels),
        preset="paper",
        code=code,
        lam=LAM,
        patches=patches,
        head_code="pca",
    )
    assert report.layers[0].code == "discriminant"
    rows, sample = chosen_rows(layer_patches(conv, x), "0", patches)
    found = weight_matrix(conv)
    for group, columns in enumerate(rows):
        k = found.shape[1]
        e = expected_code(columns, sample, labels.numpy(), k, 20, 0.05)
        s = e @ (columns - columns.mean(axis=1, keepdims=True))
        w = solution(*equation(s, columns, LAM))
        np.testing.assert_allclose(found[group], w, rtol=0, atol=CLOSE * np.abs(w).max())


@pytest.mark.parametrize("absent", [False, True])
def test_rows_of_several_entries_a_sample_are_averaged_over_the_sample(absent: bool) -> None:
    """Tokens: the mean is over a sample's tokens, padding and absent classes are left out."""
    x, labels = data(5, 4)
    if absent:
        labels = 2 * labels + 1  # of classes 0 to 5, half
        labels[6] = 2  # the only one of its class, and without tokens
    tokens = x.flatten(2).mT.contiguous()  # (samples, 16 tokens, 5)
    mask = torch.ones(SAMPLES, 16)
    mask[::2, 10:] = 0
    mask[6] = 0  # a sample that has no tokens at all

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(5, 4, dtype=torch.float64), nn.Linear(4, 2, dtype=x.dtype)

        def forward(self, inputs: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return self.b(self.a(inputs).relu())

    model = Net()
    batch = {"inputs": tokens, "attention_mask": mask, "labels": labels}
    sylvinit.initialize_(
        model, [batch], preset="paper", code=Discriminant(), patches="all", head_code="pca"
    )
    keep = mask.bool().numpy()
    columns = tokens.numpy()[keep].T
    sample = np.nonzero(keep)[0]
    e = expected_code(columns, sample, labels.numpy(), 4, 300, 0.03)
    s = e @ (columns - columns.mean(axis=1, keepdims=True))
    w = solution(*equation(s, columns, LAM))
    np.testing.assert_allclose(model.a.weight.detach().numpy(), w, rtol=0, atol=CLOSE)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    outputs=st.integers(1, 9),
    code=st.sampled_from([PCA(), Discriminant()]),
    patches=st.sampled_from([2, 7]),
    seed=st.integers(0, 20),
    channels=st.integers(1, 3),
)
def test_pairs_solve_the_doubled_equation(
    outputs: int, code: sylvinit.Code, patches: int, seed: int, channels: int
) -> None:
    """(w_1, -w_1, ...) solves A W + W B = Q for S = (s_1, -s_1, ...)."""
    half = min((outputs + 1) // 2, channels * 4)
    outputs = min(outputs, 2 * half)
    x, labels = data(channels, 5, seed)
    conv = nn.Conv2d(channels, outputs, 2, bias=False)
    model = nn.Sequential(conv, nn.ReLU(), nn.Flatten(), nn.LazyLinear(2)).double()
    sylvinit.initialize_(
        model, (x, labels), preset="paper", code=SignPairs(code), patches=patches, lam=LAM
    )
    w = weight_matrix(conv)[0]
    np.testing.assert_array_equal(w[1::2], -w[: 2 * (outputs // 2) : 2])
    rows, sample = chosen_rows(layer_patches(conv, x), "0", patches)
    columns = rows[0]
    if isinstance(code, PCA):
        e = principal_axes(columns, half)
    else:
        e = expected_code(columns, sample, labels.numpy(), half, code.prior, code.shrink)
    s = e @ (columns - columns.mean(axis=1, keepdims=True))
    both = np.stack((s, -s), axis=1).reshape(2 * half, -1)
    a, b, q = equation(both, columns, LAM)
    whole = np.stack((w[::2], -w[::2]), axis=1).reshape(2 * half, -1)
    # Worst seen 4e-15 for PCA; the generalized eigenvectors of the oracle are good to about 1e-12.
    assert relative_defect(a, b, q, whole) < (1e-13 if isinstance(code, PCA) else 1e-10)


def test_pairs_of_siblings_are_split() -> None:
    """Two branches on one input take successive pairs."""
    x, labels = data(3, 5)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 2, bias=False), nn.Conv2d(3, 4, 2, bias=False)
            self.c = nn.LazyLinear(2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.c(torch.cat((self.a(x), self.b(x)), dim=1).relu().flatten(1))

    model = Net().double()
    sylvinit.initialize_(model, (x, labels), code="pca-pairs", patches=9)
    for name, part in (("a", slice(0, 2)), ("b", slice(2, 4))):
        conv = getattr(model, name)
        found = weight_matrix(conv)[0]
        axes = principal_axes(chosen_rows(layer_patches(conv, x), name, 9)[0][0], 4)[part]
        cosines = (found[::2] * axes).sum(axis=1) / np.linalg.norm(found[::2], axis=1)
        assert (cosines > 0.9).all()  # the mean turns them a little
        np.testing.assert_array_equal(found[1::2], -found[::2])


def test_no_labels_and_bad_numbers_are_refused() -> None:
    x, _ = data(3, 5)
    model = nn.Sequential(nn.Conv2d(3, 4, 2), nn.Flatten(), nn.LazyLinear(2)).double()
    with pytest.raises(LabelError, match="needs labels"):
        sylvinit.initialize_(model, x, code="discriminant")
    with pytest.raises(OptionError, match="prior"):
        Discriminant(prior=-1)
    with pytest.raises(OptionError, match="shrink"):
        Discriminant(shrink=float("nan"))
    with pytest.raises(OptionError, match=r"'-pairs' added, .* got 'pca-pair'"):
        sylvinit.initialize_(model, x, code="pca-pair")
