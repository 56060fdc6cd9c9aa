"""Krähenbühl: filters from patches, unit variance, equal rates."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from initialiser_helpers import plain, tiny_resnet
from initialisers.filters import input_patches, make_filters
from initialisers.krahenbuhl import krahenbuhl_
from sklearn.cluster import MiniBatchKMeans
from torch import Tensor, nn


def test_patches_are_those_of_the_convolution() -> None:
    generator = torch.Generator().manual_seed(0)
    layer = nn.Conv2d(4, 6, (3, 2), (2, 1), padding=(1, 2), dilation=(1, 2), groups=2, bias=False)
    layer.double()
    x = torch.randn(40, 4, 7, 6, generator=generator, dtype=torch.float64)
    found = input_patches(layer, x, 1000, generator)
    weight = layer.weight.detach().view(2, 3, -1)
    outputs = layer(x).detach()  # (40, 6, h, w)
    expected = outputs.unflatten(1, (2, 3)).movedim(1, 0).movedim(2, -1).flatten(1, 3)
    torch.testing.assert_close(found @ weight.mT, expected)
    # Some of them: each is one of all the patches of its image.
    some = input_patches(layer, x, 5, generator).unflatten(1, (40, 5))
    distance = torch.cdist(some.flatten(0, 1), found.unflatten(1, (40, -1)).flatten(0, 1))
    assert float(distance.min(dim=-1).values.max()) < 1e-6


def test_pca_filters_are_singular_vectors() -> None:
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(200, 5, generator=generator, dtype=torch.float64) * torch.arange(5, 0, -1)
    points = points @ torch.randn(5, 9, generator=generator, dtype=torch.float64) + 3
    found = make_filters(points, 7, "pca", 0, generator).numpy()
    centred = points.numpy() - points.numpy().mean(axis=0)
    vectors = np.linalg.svd(centred)[2]
    np.testing.assert_allclose(np.abs(found[:5] @ vectors[:5].T), np.eye(5), atol=1e-9)
    # Rank 5: the other two are random, of any direction.
    assert found.shape == (7, 9)
    assert np.linalg.matrix_rank(found) == 7


def test_kmeans_filters_are_centres_of_whitened_patches() -> None:
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(300, 6, generator=generator, dtype=torch.float64) * torch.arange(6, 0, -1)
    points = points @ torch.randn(6, 6, generator=generator, dtype=torch.float64) + 3
    found = make_filters(points, 4, "kmeans", 1, generator).numpy()
    # By singular values. A sign of a singular vector mirrors points and centres alike.
    centred = points.numpy() - points.numpy().mean(axis=0)
    _, values, vectors = np.linalg.svd(centred, full_matrices=False)
    whitening = vectors[:4].T / values[:4] * math.sqrt(300)
    rows = centred @ whitening
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    clusters = MiniBatchKMeans(4, batch_size=40, n_init=1, random_state=1).fit(rows)
    np.testing.assert_allclose(found, clusters.cluster_centers_ @ whitening.T, atol=1e-9)


def test_krahenbuhl_starts_from_principal_components(data: tuple[Tensor, Tensor]) -> None:
    model = plain()
    krahenbuhl_(model, data, 0, patches=16)  # all 16 of the first layer
    patches = F.unfold(data[0], 3, stride=2, padding=1).mT.flatten(0, 1).double().numpy()
    vectors = np.linalg.svd(patches - patches.mean(axis=0), full_matrices=False)[2][:6]
    filters = F.normalize(model[0].weight.detach().flatten(1), dim=1).double().numpy()
    np.testing.assert_allclose(np.abs(filters @ vectors.T), np.eye(6), atol=1e-4)


@pytest.mark.parametrize("basis", ["pca", "kmeans"])
@pytest.mark.parametrize("norm", [False, True])
def test_krahenbuhl_outputs_have_unit_variance(
    basis: str, norm: bool, data: tuple[Tensor, Tensor]
) -> None:
    model = plain(norm)
    krahenbuhl_(model, data, 0, basis=basis, rounds=0, bias=0.25)
    model.train()
    x = data[0]
    with torch.no_grad():
        for layer in model:
            x = layer(x)
            if isinstance(layer, nn.Conv2d | nn.Linear):
                rows = x.transpose(0, 1).flatten(1)
                ones = torch.ones(len(rows))
                torch.testing.assert_close(rows.var(dim=1, correction=0), ones, atol=1e-4, rtol=0)
                torch.testing.assert_close(rows.mean(dim=1), ones / 4, atol=1e-4, rtol=0)


def rates(model: nn.Module, images: Tensor) -> list[float]:
    """|gradient| / |weight| of each layer, over 50 random gradients at the outputs."""
    generator = torch.Generator().manual_seed(11)
    model = copy.deepcopy(model).train()
    weights = [value for value in model.parameters() if value.ndim >= 2]
    squares = np.zeros(len(weights))
    for _ in range(50):
        outputs = model(images)
        top = torch.randn(outputs.shape, generator=generator)
        gradients = torch.autograd.grad(outputs, weights, top)
        squares += [float(g.square().sum()) / 50 for g in gradients]
    sizes = [float(weight.detach().square().sum()) for weight in weights]
    return [math.sqrt(square / size) for square, size in zip(squares, sizes, strict=True)]


@pytest.mark.parametrize("make", [plain, lambda: plain(norm=True, bias=False), tiny_resnet])
def test_krahenbuhl_layers_learn_at_equal_rates(
    make: Callable[[], nn.Module], data: tuple[Tensor, Tensor]
) -> None:
    before, after = make(), make()
    krahenbuhl_(before, data, 0, rounds=0)
    krahenbuhl_(after, data, 0)
    spread = np.ptp(np.log(rates(before, data[0])))
    assert spread > 0.7
    # Ten rounds of alpha = 0.25 leave 0.75^10 = 5.6 % of the spread. The rest is the noise of their
    # random gradients, which six seeds put between 0.1 and 0.33 for these small networks.
    assert np.ptp(np.log(rates(after, data[0]))) < 0.056 * spread + 0.3


def test_krahenbuhl_rates_keep_the_function_of_a_homogeneous_network(
    data: tuple[Tensor, Tensor],
) -> None:
    """The scales of all layers multiply to 1, and biases follow (section 3.2)."""
    before, after = plain(), plain()
    krahenbuhl_(before, data, 0, rounds=0)
    krahenbuhl_(after, data, 0)
    assert not torch.allclose(before[0].weight, after[0].weight, rtol=0.1)
    with torch.no_grad():
        torch.testing.assert_close(after(data[0]), before(data[0]), rtol=1e-3, atol=1e-3)
