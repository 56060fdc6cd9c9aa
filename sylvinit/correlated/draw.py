"""Drawing weights whose spatial filters have a given correlation matrix."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn.parameter import is_lazy

from sylvinit.checks import check_choice, check_generator, check_number
from sylvinit.errors import CorrelationError, ModelError, OptionError, OptionTypeError
from sylvinit.priors.files import loaded
from sylvinit.priors.matrix import check_correlation, shown
from sylvinit.priors.strength import factor, scale_correlation

KAIMING_GAIN = math.sqrt(2.0)


def correlated_normal_(
    tensor: Tensor,
    corr: Any,
    *,
    gain: float = KAIMING_GAIN,
    mode: str = "fan_in",
    generator: Generator | None = None,
) -> Tensor:
    """Fill a convolution's weight with normal filters of correlation matrix R, in place.

    Every filter, one for each pair of unit and input channel, is drawn on its own ("Correlated
    Initialization for Correlated Data", algorithm 1, with the variance of eq. 17):

        w = gain / sqrt(channels * sum_ij R[i, j]) * C z,   C C^T = R,   z ~ N(0, I).

    For R = I the sum is the number of taps and this is ``torch.nn.init.kaiming_normal_``. A layer
    whose input is equal at all taps keeps E[y^2] = gain^2 E[x^2] whatever R is, see
    :func:`output_variance`. The paper's algorithm has no gain; it is sqrt(2) here, for a ReLU.

    Args:
        tensor: floating point, (units, channels / groups, *kernel), one to three spatial axes.
        corr: R, (taps, taps), taps in row-major order, positive semidefinite; or the name of a
            built-in one.
        gain: of the activation, positive; ``torch.nn.init.calculate_gain`` knows them.
        mode: "fan_in" preserves the variance of activations; "fan_out" takes units instead of
            channels, and preserves that of gradients, for a single group (as in torch, all units
            count for every group).
        generator: of the random numbers; None takes torch's global one. They are drawn on the CPU
            (or the generator's device), so a seed gives the same weights on every device.

    Returns:
        ``tensor``.

    Raises:
        CorrelationError: R is no correlation matrix, does not fit the kernel, or its entries add up
            to zero or less.
        OptionTypeError: ``tensor`` is no floating-point tensor; an argument has the wrong type.
        OptionError: ``tensor`` has no spatial axes; ``gain`` or ``mode`` is out of its domain.
        ModelError: ``tensor`` has no values yet (lazy).
    """
    _check_weight(tensor)
    gain = check_drawing(gain, mode, generator)
    kernel = tuple(tensor.shape[2:])
    corr = loaded(corr)
    matrix = scale_correlation(check_correlation(corr, math.prod(kernel)), stacklevel=3)
    if (getattr(corr, "kernel_size", None) or kernel) != kernel:
        raise CorrelationError(
            f"corr belongs to filters of {shown(corr.kernel_size)}, and tensor has filters of "
            f"{shown(kernel)}; see sylvinit.correlated.resample_correlation"
        )
    with rewound_on_failure(generator):
        drawn = draw_filters(tuple(tensor.shape), matrix, gain=gain, mode=mode, generator=generator)
        with torch.inference_mode(tensor.is_inference()), torch.no_grad():
            return tensor.copy_(drawn)  # raises for an expanded tensor


def check_drawing(gain: float, mode: str, generator: Any) -> float:
    """The gain, if all three are valid."""
    check_choice("mode", mode, ("fan_in", "fan_out"))
    check_generator(generator)
    return check_number("gain", gain, positive=True)


@contextmanager
def rewound_on_failure(generator: Generator | None) -> Iterator[None]:
    """Random numbers drawn in a block that fails, with Ctrl-C too, will be drawn again."""
    source = torch.default_generator if generator is None else generator
    before = source.get_state()
    try:
        yield
    except BaseException:
        source.set_state(before)
        raise


def _check_weight(tensor: Any) -> None:
    if not isinstance(tensor, Tensor):
        raise OptionTypeError(f"tensor must be a torch.Tensor, got {type(tensor).__name__}")
    if is_lazy(tensor):
        raise ModelError("tensor is lazy and has no shape yet; run the model once on data")
    if not tensor.is_floating_point():
        raise OptionTypeError(f"tensor must be a floating-point weight, got {tensor.dtype}")
    if not 3 <= tensor.ndim <= 5:
        raise OptionError(
            "tensor must have shape (units, channels, *kernel) with one to three spatial axes, got "
            f"{tuple(tensor.shape)}; use torch.nn.init.kaiming_normal_ for other weights"
        )


def draw_filters(
    shape: tuple[int, ...], matrix: Tensor, *, gain: float, mode: str, generator: Generator | None
) -> Tensor:
    """Weights of algorithm 1 for a checked R, float64 on the CPU or the generator's device."""
    fan = shape[1] if mode == "fan_in" else shape[0]
    device = torch.device("cpu") if generator is None else generator.device
    size = shape[0] * shape[1], matrix.shape[0]
    white = torch.randn(size, dtype=torch.float64, device=device, generator=generator)
    # An empty weight has no fan; it has no entries to scale either.
    scale = gain / math.sqrt(max(fan, 1) * float(matrix.sum()))
    return (white @ factor(matrix).mT.to(device) * scale).reshape(shape)


def output_variance(corr: Any, inputs: Any = None, *, gain: float = KAIMING_GAIN) -> float:
    """E[y^2] / E[x^2] of a convolution with weights of :func:`correlated_normal_` ("fan_in").

    With M the correlation matrix of a channel's pixels about zero (E[x x^T] / E[x^2]),

        E[y^2] / E[x^2] = gain^2 tr(R M) / sum_ij R[i, j].

    It is gain^2 for equal pixels (M all ones), and gain^2 taps / sum R for white ones (M = I): with
    a mean correlation of 0.23 over 9 taps, 0.35 gain^2. Channels may depend on each other in any
    way, for their filters are independent and have zero mean.

    Args:
        corr: R, (taps, taps).
        inputs: M, (taps, taps); None for the identity.
        gain: not negative.

    Returns:
        The ratio, expected over the weights.

    Raises:
        CorrelationError: a matrix is no correlation matrix, the two differ in size, or the entries
            of R add up to zero or less.
    """
    matrix = scale_correlation(check_correlation(corr))
    taps = matrix.shape[0]
    white = torch.eye(taps, device="cpu")
    pixels = white if inputs is None else check_correlation(inputs, taps, "inputs")
    return check_number("gain", gain) ** 2 * float((matrix * pixels).sum()) / float(matrix.sum())
