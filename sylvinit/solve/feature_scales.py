"""Whether the features of a classifier have the scales that its equation takes for granted."""

from __future__ import annotations

from sylvinit.moments.statistics import LayerStatistics

# Largest standard deviation over the median one from which the ridges of a logistic head, which are
# relative to the mean variance, leave little of the other features: 100 cost a table of nine
# columns nothing, 1,000 cost 14 points.
_UNLIKE = 300.0
# lam * mean variance / largest class frequency below which a one-hot head is little else than the
# frequencies: at 0.04 a head on embeddings of norm 1 found 464 of 1,194 of the rarer class.
_SMALL = 0.1


def unlike_scales(stats: LayerStatistics) -> str | None:
    """How far the features' deviations are apart, if that is too far for logistic heads."""
    if stats.basis is not None:  # the features are mixed
        return None
    deviation = stats.covariance.diagonal(dim1=1, dim2=2).clamp(min=0).sqrt()
    seen = deviation[deviation > 0]
    if seen.numel() == 0 or float(seen.max()) <= _UNLIKE * float(seen.median()):
        return None
    return f"standard deviations up to {float(seen.max() / seen.median()):.2g} times the median"


def too_small(stats: LayerStatistics, lam: float) -> str | None:
    """How small the features are, if one-hot codes of the classes hardly see them at this lam.

    Row c of the solution is (f_c I + lam E[x x^T])^-1 (1 + lam) f_c mu_c.
    """
    if stats.class_counts is None:
        return None
    features = stats.d if stats.basis is None else stats.basis.shape[2]
    power = stats.covariance.diagonal(dim1=1, dim2=2).sum(dim=1).mean() / features
    share = float(stats.class_shares().max())
    level = lam * float(power)
    if level == 0 or level >= _SMALL * share:
        return None
    return f"lam times their mean variance is {level:.2g}, the largest class has {share:.2g}"
