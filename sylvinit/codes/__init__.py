"""Latent codes: what a layer's outputs are asked to be.

A code is an object with three attributes and a method (see :class:`Code`); the built-in ones are
``pca``, ``lda``, ``ica``, ``kmeans``, ``onehot`` and ``correlated``.
"""

from __future__ import annotations

from sylvinit.codes.base import Code, Latent, fix_signs
from sylvinit.codes.components import ICA, LDA, PCA
from sylvinit.codes.correlated import CorrelatedFilters
from sylvinit.codes.registry import available_codes, get_code, register_code
from sylvinit.codes.targets import KMeans, OneHot

__all__ = [
    "ICA",
    "LDA",
    "PCA",
    "Code",
    "CorrelatedFilters",
    "KMeans",
    "Latent",
    "OneHot",
    "available_codes",
    "fix_signs",
    "get_code",
    "register_code",
]
