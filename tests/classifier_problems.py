"""Rows of overlapping classes, for the tests of heads that are no least-squares fit."""

from __future__ import annotations

import numpy as np

Array = np.ndarray


def classes_of(n: int, classes: int, d: int, seed: int) -> tuple[Array, Array]:
    """Rows of overlapping classes, each with at least two."""
    generator = np.random.default_rng(seed)
    labels = np.concatenate((np.arange(2 * classes) % classes, generator.integers(0, classes, n)))
    centers = generator.normal(size=(classes, d))
    return centers[labels] + generator.normal(size=(len(labels), d)), labels
