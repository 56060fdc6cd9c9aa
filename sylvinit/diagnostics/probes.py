"""What the layers of a model put out, which gradients they get, and what a module is fed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.nn.utils import parametrize
from torch.utils.hooks import RemovableHandle

from sylvinit.diagnostics.gradients import sum_dtype
from sylvinit.diagnostics.rank import entropy_rank

_NORMS = (nn.LayerNorm, nn.RMSNorm)  # the normalizations whose weight may have two axes


def find_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that own a weight of two or more axes and contain no other module.

    Convolutions, linear layers and embeddings, with weight normalization and the like, too; not
    normalizations and not ``nn.MultiheadAttention``, which contains a module it never calls.
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

    ``begin_forward`` is called at every forward with gradients and says whether to record it.
    """

    def __init__(self, module: nn.Module, begin_forward: Callable[[], bool]) -> None:
        kernel = module.kernel_size if isinstance(module, nn.modules.conv._ConvNd) else ()
        self.active = True  # False: gradients that still arrive are ignored
        self.seen = False  # a forward has been recorded
        self._module = module
        self.units: int | None = None  # channels of the output, from the first gradient on
        self._axis = -1 - len(kernel)  # of the channels, with or without a batch axis
        self._begin_forward = begin_forward
        self._leaves: list[RemovableHandle] = []
        self.clear()

    def clear(self) -> None:
        """Begin another update."""
        self._activations, self._gradients = PooledVariance(), PooledVariance()
        self._alive: Tensor | None = None
        self._ran = False
        for handle in self._leaves:
            handle.remove()
        self._leaves = []

    def attach(self) -> RemovableHandle:
        """Watch the forwards of the layer."""
        return self._module.register_forward_hook(_Hook(self._forward))

    def statistics(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Variance of the outputs, that of their gradients, and dead units; 0-d."""
        dead = None if self._alive is None else self._alive.numel() - self._alive.sum()
        return self._activations.value, self._gradients.value, dead

    def _forward(self, module: nn.Module, args: Any, output: Any) -> None:
        if not (_is_training_forward() and _is_readable(output) and self._begin_forward()):
            return
        recomputation = torch._C._current_graph_task_id() != -1  # within a backward pass
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
        if not (self.active and _is_readable(grad)):
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

    def __init__(self, name: str, module: nn.Module, begin_forward: Callable[[], bool]) -> None:
        self.name = name
        self._module = module
        self._begin_forward = begin_forward
        self.seen = False
        self.clear()

    def clear(self) -> None:
        """Begin another update."""
        self._features: Tensor | None = None

    def attach(self) -> RemovableHandle:
        """Watch the input of the module."""
        return self._module.register_forward_pre_hook(_Hook(self._forward), with_kwargs=True)

    def statistics(self) -> tuple[Tensor | None]:
        """The effective rank, 0-d; None of features that are not finite."""
        features = self._features
        if features is None or not bool(features.isfinite().all()):
            return (None,)
        return (entropy_rank(features),)

    def _forward(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        given = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        if _is_training_forward() and given and _is_readable(given[0]) and self._begin_forward():
            features = given[0].detach()
            # A copy, since what comes after may change its input in place.
            self._features = features.reshape(len(features) if features.ndim else 1, -1).clone()
            self.seen = True


class PooledVariance:
    """The variance of the entries of several tensors about their common mean, 0-d in ``value``.

    Count, mean and variance are merged tensor by tensor (Chan, Golub and LeVeque 1983), without
    the cancellation of a difference of two sums of squares. Nothing waits for the device.
    """

    def __init__(self) -> None:
        self.value: Tensor | None = None
        self._count = 0
        self._mean: Tensor | None = None

    def add(self, x: Tensor) -> None:
        """Add the entries of a floating tensor, of which there is at least one."""
        mean, variance = _mean_variance(x)
        count, self._count = self._count, self._count + x.numel()
        if self._mean is None or self.value is None:
            self._mean, self.value = mean, variance
            return
        mean, variance = mean.to(self._mean.device), variance.to(self._mean.device)
        share = x.numel() / self._count
        between = (mean - self._mean).square() * (share * count / self._count)
        self._mean = torch.lerp(self._mean, mean, share)
        self.value = torch.lerp(self.value, variance, share) + between


def _mean_variance(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of one tensor, computed in float32 or better, kept in float64."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    if x.device.type == "cpu":
        # Two passes, vectorized; torch.var_mean goes entry by entry here, 3 to 4 times as slow.
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


class _Hook:
    """A hook that stays behind when its module is copied (as for a moving average) or pickled.

    A closure could not be pickled.
    """

    def __init__(self, function: Callable[..., None]) -> None:
        self._function = function

    def __call__(self, *args: Any) -> None:
        if not torch.compiler.is_compiling():  # compiled code is as it would be without the hook
            self._function(*args)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Hook, (_do_nothing,)


def _do_nothing(*args: Any) -> None: ...


def _is_training_forward() -> bool:
    """Whether gradients are on, and torch does not trace or capture the program.

    Statistics would become a part of what it captures.
    """
    return (
        torch.is_grad_enabled()
        and not torch.jit.is_tracing()
        and not (torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing())
    )


def _is_readable(value: Any) -> TypeGuard[Tensor]:
    """Whether a value is a floating, dense tensor with entries.

    Tensors of torch.func (vmap, grad) are not read: they exist only inside their transform.
    """
    return (
        isinstance(value, Tensor)
        and value.is_floating_point()
        and value.layout == torch.strided
        and value.numel() > 0
        and not is_functorch_wrapped_tensor(value)
    )
