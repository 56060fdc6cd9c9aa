"""The features of the whitened dictionary beside a computation of one patch after the other."""

from __future__ import annotations

import numpy as np
import peers
import pytest
import torch


def test_features_are_means_of_the_triangle_activation_over_quadrants(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(peers, "ATOMS", 5)
    monkeypatch.setattr(peers, "PATCH", 3)
    images = torch.rand(7, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    found = peers.Dictionary(images, seed=0)
    mean, whitening, atoms = (x.numpy() for x in (found.mean, found.whitening, found.atoms))
    expected = np.zeros((7, 5, 2, 2))
    for place, image in enumerate(images.numpy()):
        for row in range(4):
            for column in range(4):
                patch = image[:, row : row + 3, column : column + 3].reshape(-1)
                patch = (patch - patch.mean()) / np.sqrt(patch.var() + peers.CONTRAST)
                distance = np.linalg.norm((patch - mean) @ whitening - atoms, axis=1)
                active = np.maximum(distance.mean() - distance, 0)
                expected[place, :, row // 2, column // 2] += active / 4
    # float32; torch.cdist takes differences of squares, which lose digits.
    np.testing.assert_allclose(found.features(images).numpy(), expected.reshape(7, -1), atol=1e-3)


def test_whitened_patches_are_uncorrelated_but_for_what_is_added() -> None:
    images = torch.rand(200, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    found = peers.Dictionary(images, seed=1)
    rows = peers.normalized(peers.patches_of(images, seed=1)).double()
    white = (rows - found.mean.double()) @ found.whitening.double()
    values = torch.linalg.eigvalsh(torch.cov(rows.T)).clamp(min=0)
    expected = (values / (values + peers.WHITENING)).sort().values
    torch.testing.assert_close(
        torch.linalg.eigvalsh(torch.cov(white.T)), expected, atol=1e-4, rtol=0
    )
