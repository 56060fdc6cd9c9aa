"""Spatially correlated filters ("Correlated Initialization for Correlated Data").

``filter_correlation``, ``input_correlation``, ``correlated_normal_`` and ``correlated_init_`` are
also in the package's own namespace; here are the functions they are made of as well.
"""

from __future__ import annotations

from sylvinit.correlated.apply import correlated_init_
from sylvinit.correlated.draw import correlated_normal_, output_variance
from sylvinit.correlated.estimate import filter_correlation
from sylvinit.correlated.inputs import input_correlation
from sylvinit.priors.distance import (
    DistanceModel,
    DistanceProfile,
    correlation_by_distance,
    fit_distance_model,
    resample_correlation,
)
from sylvinit.priors.matrix import FilterCorrelation, check_correlation
from sylvinit.priors.strength import scale_correlation

__all__ = [
    "DistanceModel",
    "DistanceProfile",
    "FilterCorrelation",
    "check_correlation",
    "correlated_init_",
    "correlated_normal_",
    "correlation_by_distance",
    "filter_correlation",
    "fit_distance_model",
    "input_correlation",
    "output_variance",
    "resample_correlation",
    "scale_correlation",
]
