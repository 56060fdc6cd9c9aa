"""Linear classifiers in closed form and by a few steps of majorise-minimise."""

from __future__ import annotations

from sylvinit.classifier.logistic import refine_logistic
from sylvinit.solve.gaussian_classes import GaussianClassifier, fit_gaussian

__all__ = ["GaussianClassifier", "fit_gaussian", "refine_logistic"]
