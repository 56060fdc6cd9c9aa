"""What the layers of a model put out, which gradients they get, and what a module is fed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.hooks import RemovableHandle

from sylvinit.diagnostics.gradients import sum_dtype
from sylvinit.diagnostics.hooks import Hook, in_backward, readable, training_forward
from sylvinit.diagnostics.pooling import Pool
from sylvinit.diagnostics.rank import entropy_rank

_NORMS = (nn.LayerNorm, nn.RMSNorm)  # the normalisations whose weight may have two axes
_CONVOLUTIONS = (nn.modules.conv._ConvNd,)


def find_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that own a weight of two or more axes and contain no other module.

    Convolutions, linear layers and embeddings, with weight normalisation and the like, too; not
    normalisations and not ``nn.MultiheadAttention``, which contains a module it never calls.
    """
    return {
        name: module
        for name, module in model.named_modules()
        if "parametrizations" not in name.split(".") and _is_layer(module)
    }


def _is_layer(module: nn.Module) -> bool:
    parts = {name for name, _ in module.named_children()}
    if parametrize.is_parametrized(module):
        parts.discard("parametrizations")
    if parts or isinstance(module, (*_NORMS, torch.jit.ScriptModule)):  # which take no hooks
        return False
    return any(weight.ndim >= 2 for weight in module.parameters())


class LayerProbe:
    """Statistics of one layer over the forwards and backwards of an update.

    Args:
        module: the layer.
        begin_forward: called at every forward with gradients; whether that one is recorded.
        is_active: whether a gradient that arrives is still of interest.

    Attributes:
        seen: whether any forward has been recorded.
        units: channels of the output; None before the first gradient.
    """

    def __init__(
        self,
        module: nn.Module,
        begin_forward: Callable[[], bool],
        is_active: Callable[[], bool],
    ) -> None:
        kernel = module.kernel_size if isinstance(module, _CONVOLUTIONS) else ()
        self.seen = False
        self.units: int | None = None
        self._axis = -1 - len(kernel)  # of the channels, with or without a batch axis
        self._begin_forward = begin_forward
        self._is_active = is_active
        self._leaves: list[RemovableHandle] = []
        self._activations, self._gradients = Pool(), Pool()
        self.clear()

    def clear(self) -> None:
        """Begin another update."""
        self._activations.clear()
        self._gradients.clear()
        self._alive: Tensor | None = None
        self._ran = False
        for handle in self._leaves:
            handle.remove()
        self._leaves = []

    def attach(self, module: nn.Module) -> RemovableHandle:
        """Watch the forwards of the layer."""
        return module.register_forward_hook(Hook(self._forward))

    def statistics(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Variance of the outputs, that of their gradients, and dead units; 0-d."""
        dead = None if self._alive is None else self._alive.numel() - self._alive.sum()
        return self._activations.variance(), self._gradients.variance(), dead

    def _forward(self, module: nn.Module, args: Any, output: Any) -> None:
        if not (training_forward() and readable(output) and self._begin_forward()):
            return
        recomputation = in_backward()
        if recomputation and self._ran:
            # Checkpointing computes again what was seen before. Its reentrant variant is different:
            # there the first forward has no gradients, and this is the one to be recorded.
            return
        self._ran = self._ran or not recomputation
        with torch.no_grad():
            self._activations.add(output.detach())
        self.seen = True
        if output.requires_grad:
            # A hook of the tensor, since hooks of the module do not allow its output to be changed
            # in place. It gets the gradient with respect to the output before any such change.
            handle = output.register_hook(self._backward)
            if output.is_leaf:  # a parameter that the module returns as it is
                self._leaves.append(handle)

    def _backward(self, grad: Tensor) -> None:
        if not (self._is_active() and readable(grad)):
            return
        with torch.no_grad():
            grad = grad.detach()
            self._gradients.add(grad)
            channel = self._axis % grad.ndim if grad.ndim else 0
            others = [axis for axis in range(grad.ndim) if axis != channel]
            # Faster than any(), and a NaN is not zero here, either.
            alive = (grad.abs().amax(dim=others) if others else grad).reshape(-1) != 0
            if self._alive is not None and self._alive.shape == alive.shape:
                alive |= self._alive.to(alive.device)
            self._alive = alive
            self.units = alive.numel()


class FeatureProbe:
    """The effective rank of what a module is fed, in the last forward before an update."""

    def __init__(self, begin_forward: Callable[[], bool]) -> None:
        self._begin_forward = begin_forward
        self.seen = False
        self.clear()

    def clear(self) -> None:
        """Begin another update."""
        self._features: Tensor | None = None

    def attach(self, module: nn.Module) -> RemovableHandle:
        """Watch the input of the module."""
        return module.register_forward_pre_hook(Hook(self._forward), with_kwargs=True)

    def statistic(self) -> Tensor | None:
        """The effective rank, 0-d; NaN of features that are not finite."""
        if self._features is None:
            return None
        if not bool(self._features.isfinite().all()):
            return torch.full((), torch.nan, device=self._features.device)
        return entropy_rank(self._features)

    def _forward(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        given = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        if not (training_forward() and given and readable(given[0]) and self._begin_forward()):
            return
        features = given[0].detach()
        # A copy, since what comes after may change its input in place.
        self._features = features.reshape(len(features) if features.ndim else 1, -1).clone()
        self.seen = True


def packed(values: list[Tensor | None], device: torch.device) -> Tensor:
    """0-d tensors as one 1-d tensor on a device, NaN for None."""
    dtype = sum_dtype(device)
    missing = torch.full((), torch.nan, dtype=dtype, device=device)
    return torch.stack([missing if v is None else v.to(device, dtype) for v in values])
