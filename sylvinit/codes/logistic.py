"""The code of a classifier that is not fitted to one-hot targets by least squares."""

from __future__ import annotations

from dataclasses import dataclass

from sylvinit.checks import check_count, check_number
from sylvinit.codes.targets import OneHot


@dataclass(frozen=True)
class Logistic(OneHot):
    """One-hot labels, and for a head with a bias their likelihood in place of squared distances.

    A head starts as the classifier of Gaussian classes with one covariance, whose ridge is that of
    the least leave-one-out error (:mod:`sylvinit.solve.gaussian_classes`), and takes a few steps
    towards the maximum of the likelihood (:mod:`sylvinit.solve.logistic_steps`); lam has no part in
    it. Other layers, heads without a bias and grouped ones are solved as with :class:`OneHot`, and
    their reports say so.

    Attributes:
        strength: how many rows the start counts as, for each feature (tau = strength * d, d the
            smaller number of features and of rows): the fewer rows a feature there are, the nearer
            the classifier stays to it.
        steps: how many.
        reservoir: rows that the classifier is fitted to at most; of more a random sample is taken.

    Raises:
        OptionError, OptionTypeError: strength is not positive, or steps not a whole number of at
            least 1.
    """

    strength: float = 0.5
    steps: int = 20
    name: str = "logistic"
    reservoir: int = 10_000

    def __post_init__(self) -> None:
        check_number("strength", self.strength, positive=True)
        check_count("steps", self.steps)
