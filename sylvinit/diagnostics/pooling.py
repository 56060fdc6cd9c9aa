"""Variance over several tensors, as the microbatches of one update."""

from __future__ import annotations

import torch
from torch import Tensor

from sylvinit.diagnostics.gradients import sum_dtype


class Pool:
    """The variance of the entries of several tensors about their common mean.

    Count, mean and variance are merged tensor by tensor (Chan, Golub and LeVeque 1983), without
    the cancellation of a difference of two sums of squares. Nothing waits for the device.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self._count = 0
        self._mean: Tensor | None = None
        self._variance: Tensor | None = None

    def add(self, x: Tensor) -> None:
        """Add the entries of a floating tensor, of which there is at least one."""
        mean, variance = _mean_variance(x)
        count, self._count = self._count, self._count + x.numel()
        if self._mean is None or self._variance is None:
            self._mean, self._variance = mean, variance
            return
        mean, variance = mean.to(self._mean.device), variance.to(self._mean.device)
        share = x.numel() / self._count
        between = (mean - self._mean).square() * (share * count / self._count)
        self._mean = torch.lerp(self._mean, mean, share)
        self._variance = torch.lerp(self._variance, variance, share) + between

    def variance(self) -> Tensor | None:
        """The mean squared deviation from the mean, 0-d; None before the first tensor."""
        return self._variance


def _mean_variance(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of one tensor, computed in float32 or better, kept in float64."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    if x.device.type == "cpu":
        # Two passes, vectorised; torch.var_mean goes entry by entry here, 3 to 4 times as slow.
        # The mean of a view that is not dense is a plain sum: the second pass has it right.
        rough = x.mean()
        deviation = x - rough
        off = deviation.mean().double()
        mean = rough + off
        variance = (deviation.square_().mean() - off.square()).clamp(min=0)
    else:
        variance, mean = torch.var_mean(x, correction=0)
    dtype = sum_dtype(x.device)
    return mean.to(dtype), variance.to(dtype)
