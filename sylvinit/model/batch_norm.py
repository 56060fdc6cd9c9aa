"""Calibrating the running statistics of batch normalization over the whole data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sylvinit.distributed import Message
from sylvinit.errors import NonFiniteError

NORM_TYPES = (nn.modules.batchnorm._BatchNorm,)


class Norm:
    """A batch normalization whose running mean and variance become those of the whole data.

    As in training, the variance kept is the unbiased one; unlike there, it is that of all samples
    and not an average over batches.
    """

    def __init__(self, module: nn.modules.batchnorm._BatchNorm, name: str) -> None:
        self.module = module
        self.name = name
        self.kind = type(module).__name__
        self.gain: float | None = None  # what all entries of the scale become; None leaves them
        names = ("running_mean", "running_var", "num_batches_tracked")
        self.buffers = [name for name in names if getattr(module, name) is not None]
        self.reset()

    def write_gain(self) -> None:
        """Write the scale, if there is a gain."""
        weight = self.module.weight
        if self.gain is not None:
            with torch.inference_mode(weight.is_inference()), torch.no_grad():
                weight.fill_(self.gain)

    def notes(self) -> list[str]:
        """What is done beside the calibration."""
        return [] if self.gain is None else [f"ends a residual branch: scale {self.gain:.3g}"]

    def reset(self) -> None:
        """Forget what was collected."""
        self.count = 0
        self._mean = self._scatter = torch.zeros(self.module.num_features, dtype=torch.float64)

    def input(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        """The input (samples, channels, ...)."""
        return args[0] if args else kwargs["input"]

    def collect(self, x: Tensor) -> None:
        """Add the statistics of a microbatch (Chan, Golub and LeVeque 1983)."""
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        count = x.numel() // x.shape[1]
        if count == 0:
            return
        self._merge(count, *_mean_and_scatter(x, count))

    def written(self) -> list[Tensor]:
        """The buffers and, with a gain, the parameter that are written."""
        buffers = [self.module._buffers[name] for name in self.buffers]
        found = [x for x in buffers if x is not None]
        return found if self.gain is None else [*found, self.module.weight]

    def packed(self, total: int) -> Message:
        """What was collected, for :meth:`merge` elsewhere."""
        return Message(self.count, [self._mean, self._scatter])

    def merge(self, message: Message) -> None:
        """Add what another process has collected."""
        buffer = self.module.running_mean
        if message.meta and buffer is not None:
            self._merge(message.meta, *(x.to(buffer.device) for x in message.tensors))

    def _merge(self, count: int, mean: Tensor, scatter: Tensor) -> None:
        if self.count:
            total = self.count + count
            step = mean - self._mean
            scatter = self._scatter + scatter + step**2 * (self.count * count / total)
            mean = self._mean + step * (count / total)
        self.count, self._mean, self._scatter = self.count + count, mean, scatter

    def finish(self) -> tuple[float, float]:
        """Write the running statistics.

        Returns the root mean square over channels of the running deviation before, and of the new
        one. Raises NonFiniteError if they are not finite, or too large for the buffers.
        """
        module, mean = self.module, self._mean
        if not self.count or module.running_mean is None:
            return float("nan"), float("nan")
        variance = self._scatter / max(self.count - 1, 1)
        if not bool(mean.isfinite().all() and variance.isfinite().all()):
            raise NonFiniteError(
                f"NaN or Inf in the input of {self.name} ({self.kind}); look at what runs before it"
            )
        self._check_range("mean", mean, module.running_mean)
        self._check_range("variance", variance, module.running_var)
        before = module.running_var if module.running_var is not None else variance
        std_before = float(before.double().mean().sqrt())
        # Buffers made in inference mode can only be written there.
        with torch.inference_mode(module.running_mean.is_inference()), torch.no_grad():
            module.running_mean.copy_(mean)
            if module.running_var is not None:
                module.running_var.copy_(variance)
            if module.num_batches_tracked is not None:
                module.num_batches_tracked.add_(1)
        return std_before, float(variance.mean().sqrt())

    def _check_range(self, what: str, value: Tensor, buffer: Tensor | None) -> None:
        if buffer is not None and not bool(value.to(buffer.dtype).isfinite().all()):
            raise NonFiniteError(
                f"the {what} of the input of {self.name} ({self.kind}), up to "
                f"{float(value.abs().max()):.3g}, is too large for {buffer.dtype}; scale the "
                "data down, use bfloat16 or float32, or leave it out with exclude="
            )


# Mean^2 / variance of a channel up to which its scatter is taken as the difference of two sums.
_MOST_OFFSET = 4.0
_AT_ONCE = 2**18  # entries of some samples whose squares are in memory: few enough for the caches


def _mean_and_scatter(x: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """float64 mean and sum of squared deviations (channels,) of x (samples, channels, ...).

    The statistics of torch's training step are not used on the CPU. Channels last, they are plain
    float32 sums over all entries (the variance of 250 maps of 32 x 32, ReLUs, is 0.2 % off), and
    for contiguous maps they take longer.
    """
    if x.device.type != "cpu":
        mean, variance = torch.batch_norm_update_stats(x, None, None, 0.0)
        return mean.double(), variance.double() * count
    maps = x.flatten(2) if x.ndim > 2 else x.mT[None]
    total, squares = _sums(maps)
    offset = total**2 / count
    if bool(((offset <= _MOST_OFFSET * (squares - offset)) & squares.isfinite()).all()):
        return total / count, squares - offset
    shift = (total / count).to(x.dtype)
    total, squares = _sums(maps, shift[:, None])
    return shift + total / count, squares - total**2 / count


def _sums(maps: Tensor, shift: Tensor | float = 0.0) -> tuple[Tensor, Tensor]:
    """float64 sums of x - shift and of its squares, (channels,), for maps x (n, channels, pixels).

    Pairwise sums over the pixels of a map, then plain ones in float64.
    """
    total = squares = maps.new_zeros(maps.shape[1], dtype=torch.float64)
    for part in maps.split(max(_AT_ONCE * len(maps) // maps.numel(), 1)):
        part = part - shift if isinstance(shift, Tensor) else part
        total = total + part.sum(dim=2).sum(dim=0, dtype=torch.float64)
        squares = squares + part.square().sum(dim=2).sum(dim=0, dtype=torch.float64)
    return total, squares


def reason_to_skip(module: nn.Module) -> str | None:
    """Why a normalization is left alone; None for those to be calibrated and for other modules."""
    if isinstance(module, nn.modules.instancenorm._InstanceNorm):
        if module.running_mean is not None:
            return "running statistics of instance normalization are not calibrated"
    elif isinstance(module, NORM_TYPES):
        if module.running_mean is None:
            return "keeps no running statistics"
        if module.weight is not None and not module.weight.requires_grad:
            return "frozen (its weight does not require a gradient)"
    return None
