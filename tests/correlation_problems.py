"""Correlation matrices for tests, made with NumPy alone."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray


def random_correlation(taps: int, seed: int = 0, rank: int | None = None) -> Array:
    """A correlation matrix of the given rank, by default of full rank."""
    x = np.random.default_rng(seed).normal(size=(taps, rank or 2 * taps))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    matrix = x @ x.T
    np.fill_diagonal(matrix, 1.0)
    return (matrix + matrix.T) / 2


def smooth_correlation(kernel: tuple[int, ...], length: float = 1.5, floor: float = 0.1) -> Array:
    """Falls with the distance of two taps, by loops over the pairs."""
    places = np.array(list(np.ndindex(*kernel)))
    matrix = np.eye(len(places))
    for i, p in enumerate(places):
        for j, q in enumerate(places):
            if i != j:
                distance = np.sqrt(((p - q) ** 2).sum())
                matrix[i, j] = floor + (0.9 - floor) * np.exp(-distance / length)
    return matrix


def equal_correlation(taps: int, value: float) -> Array:
    """The same correlation for every pair of taps."""
    return np.full((taps, taps), value) + (1 - value) * np.eye(taps)


def correlated_filters(matrix: Array, count: int, seed: int) -> Tensor:
    """Normal rows (count, taps), float64, by NumPy's own sampler."""
    generator = np.random.default_rng(seed)
    rows = generator.multivariate_normal(
        np.zeros(len(matrix)), matrix, size=count, method="eigh", check_valid="ignore"
    )
    return torch.from_numpy(rows)
