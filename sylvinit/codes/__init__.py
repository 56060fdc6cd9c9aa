"""Latent codes: what a layer's outputs are asked to be.

A code is an object with a few attributes and a method (see :class:`Code`); the built-in ones are
``pca``, ``lda``, ``ica``, ``kmeans``, ``onehot``, ``correlated``, ``discriminant``, ``logistic``,
``targets`` and ``ridge``, and :class:`SignPairs` of any of them but those of given labels.
"""

from __future__ import annotations

from sylvinit.codes.code import Code, Latent, fix_signs, needs_sample_means, needs_targets
from sylvinit.codes.components import ICA, LDA, PCA
from sylvinit.codes.correlated_filters import CorrelatedFilters
from sylvinit.codes.discriminant import Discriminant
from sylvinit.codes.pairs import SignPairs
from sylvinit.codes.registry import available_codes, get_code, register_code
from sylvinit.codes.targets import KMeans, Logistic, OneHot, Ridge, Targets

__all__ = [
    "ICA",
    "LDA",
    "PCA",
    "Code",
    "CorrelatedFilters",
    "Discriminant",
    "KMeans",
    "Latent",
    "Logistic",
    "OneHot",
    "Ridge",
    "SignPairs",
    "Targets",
    "available_codes",
    "fix_signs",
    "get_code",
    "needs_sample_means",
    "needs_targets",
    "register_code",
]
