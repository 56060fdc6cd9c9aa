"""Linear classifiers in closed form and by a few steps of majorise-minimise."""

from __future__ import annotations

from sylvinit.solve.gaussian_classes import GaussianClassifier, fit_gaussian
from sylvinit.solve.logistic_steps import refine_logistic

__all__ = ["GaussianClassifier", "fit_gaussian", "refine_logistic"]
