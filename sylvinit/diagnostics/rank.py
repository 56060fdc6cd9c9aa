"""The effective rank of features."""

from __future__ import annotations

import torch
from torch import Tensor

from sylvinit.errors import DataError, OptionTypeError


def effective_rank(features: Tensor, *, center: bool = True) -> float:
    r"""The effective rank: the exponential of the entropy of the normalized singular values.

    With the singular values \sigma_k of the (centered) features and p_k = \sigma_k / \sum \sigma_l,

        erank = exp(-\sum_k p_k log p_k),

    which is r for r equal singular values and 1 where one dominates.

    Args:
        features: (n, ...), floating; flattened to (n, d) and computed in float64.
        center: subtract the mean over the n samples first.

    Returns:
        A number in [1, min(n, d)]; 0.0 if all (centered) features are zero up to their rounding
        errors, as those of a single sample are with ``center=True``.

    Raises:
        OptionTypeError: ``features`` is not a tensor.
        DataError: no samples or features, a dtype that is not floating, or NaN or Inf.

    Source: Roy and Vetterli, "The effective rank: A measure of effective dimensionality",
    EUSIPCO 2007, definition 1.
    """
    if not isinstance(features, Tensor):
        raise OptionTypeError(f"features must be a tensor, got {type(features).__name__}")
    if not features.is_floating_point():
        raise DataError(
            f"features: expected a floating dtype, got {features.dtype}; convert with .float()"
        )
    if features.ndim == 0 or features.numel() == 0:
        raise DataError(
            f"features: expected (n, ...) with at least one sample and one feature, got the shape "
            f"{tuple(features.shape)}"
        )
    rows = features.detach().reshape(len(features), -1)
    if not bool(rows.isfinite().all()):
        raise DataError(
            "features: expected finite values, got NaN or Inf; look at what computes them"
        )
    return float(entropy_rank(rows, center))


def entropy_rank(rows: Tensor, center: bool = True) -> Tensor:
    """The same of (n, d) finite rows, both positive, as a 0-d float64 tensor."""
    # MPS has neither float64 nor singular values.
    rows = rows.detach().to("cpu" if rows.device.type == "mps" else rows.device, torch.float64)
    largest = rows.abs().amax()
    rows = rows / torch.where(largest > 0, largest, 1.0)  # squares neither overflow nor vanish
    # The mean of equal rows can differ from them by rounding, which must not pass for a spectrum.
    rounding = torch.finfo(torch.float64).eps * max(rows.shape) * torch.linalg.matrix_norm(rows)
    if center:
        rows = rows - rows.mean(dim=0)
    values = torch.linalg.svdvals(rows)
    values = torch.where(values > rounding, values, 0.0)
    total = values.sum()
    shares = values / torch.where(total > 0, total, 1.0)
    return torch.where(total > 0, torch.special.entr(shares).sum().exp(), 0.0)
