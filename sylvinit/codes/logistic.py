"""The code of a classifier that is not fitted to one-hot targets by least squares."""

from __future__ import annotations

from dataclasses import dataclass

from sylvinit.codes.targets import OneHot


@dataclass(frozen=True)
class Logistic(OneHot):
    """One-hot labels, and for a head with a bias their likelihood in place of squared distances.

    A head starts as the classifier of Gaussian classes with one covariance, whose ridge is that of
    the least leave-one-out error (:mod:`sylvinit.classifier.discriminant`), and takes a few steps
    towards the maximum of the likelihood (:mod:`sylvinit.classifier.logistic`); lam has no part in
    it. Other layers, heads without a bias and grouped ones are solved as with :class:`OneHot`, and
    their reports say so.

    Attributes:
        reservoir: rows that the classifier is fitted to at most; of more a random sample is taken.
    """

    name: str = "logistic"
    reservoir: int = 10_000
