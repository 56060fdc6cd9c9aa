"""Which layers' outputs pass through a rectifier before the next layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

# Functions f that let positive s through, with slopes near 1, and suppress negative ones: far from
# 0 the slope there is at most a third of that for positive s. So f(s) alone loses most of one sign,
# while f(s) - f(-s) increases with s: what s and -s keep together determines s (for relu6 up to 6).
# This holds with the parameters that they usually have (slopes of leaky ones up to 1/3, threshold
# and value 0), which are not looked at. By name, for torch, torch.nn.functional and torch.Tensor
# have each of them in versions of their own. Missed is what is put together from other functions
# (torch.maximum(x, 0), torch.where(x > 0, x, 0), x * sigmoid(x)) or written in a kernel.
_RECTIFIERS = frozenset(
    {"relu", "relu6", "leaky_relu", "rrelu", "prelu", "elu", "selu", "celu", "gelu", "silu"}
    | {"mish", "hardswish", "softplus", "threshold"}
)
_CLAMPS = frozenset({"clamp", "clip", "clamp_min"})
# After these an output no longer stands for the layer it came from.
_ENDS = frozenset(
    {"linear", "bilinear", "conv1d", "conv2d", "conv3d", "matmul", "mm", "bmm", "addmm"}
    | {"conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "einsum", "baddbmm"}
    | {"__matmul__", "__rmatmul__", "softmax", "log_softmax", "tanh", "sigmoid", "hardsigmoid"}
    | {"hardtanh", "scaled_dot_product_attention", "multi_head_attention_forward"}
    | {"ones_like", "zeros_like", "full_like", "empty_like", "rand_like", "randn_like"}
    | {"new_ones", "new_zeros", "new_full", "new_empty", "new_tensor"}
)


class RectifierWatch(TorchFunctionMode):
    """Follows the outputs of modules through a forward pass, up to a rectifier.

    While the mode is on, :meth:`begin` names a tensor as the output of a module. Sums, reshapes,
    normalisations and poolings of it still stand for that module; products with other weights,
    softmax and saturating functions do not.

    Attributes:
        rectified: modules whose output reached a rectifier.
    """

    def __init__(self) -> None:
        super().__init__()
        self.rectified: set[nn.Module] = set()
        self._sources: dict[int, frozenset[nn.Module]] = {}
        self._alive: list[Tensor] = []  # no two tensors share an id

    def begin(self, module: nn.Module, output: Any) -> None:
        """Take ``output`` (a tensor, or a tuple of them) as that of ``module``."""
        for tensor in tensors_in(output):
            self._set(tensor, frozenset({module}))

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        found: frozenset[nn.Module] = frozenset()
        for tensor in tensors_in((args, tuple(kwargs.values()))):
            found |= self._sources.get(id(tensor), frozenset())
        output = func(*args, **kwargs)
        if not found:
            return output
        name = plain_name(func)
        if name in _RECTIFIERS or (name in _CLAMPS and _clamps_at_zero(args, kwargs)):
            self.rectified |= found
            found = frozenset()
        elif name in _ENDS:
            found = frozenset()
        for tensor in tensors_in(output):
            self._set(tensor, found)
        return output

    def _set(self, tensor: Tensor, sources: frozenset[nn.Module]) -> None:
        self._alive.append(tensor)
        self._sources[id(tensor)] = sources


def plain_name(func: Callable[..., Any]) -> str:
    """The name of a function of torch without underscores, but for operators.

    relu_ works in place, and torch.nn.functional.threshold is called _threshold.
    """
    name = getattr(func, "__name__", "")
    return name if name.startswith("__") else name.strip("_")


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors in a value and in the tuples and lists in it."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, (tuple, list)):
        return [tensor for item in value for tensor in tensors_in(item)]
    return []


def _clamps_at_zero(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    least = kwargs.get("min", args[1] if len(args) > 1 else None)
    return isinstance(least, (int, float)) and least == 0
