"""Products with parameters outside of all layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

from sylvinit.rectifiers import plain_name, tensors_in

_PRODUCTS = frozenset(
    {"linear", "bilinear", "conv1d", "conv2d", "conv3d", "matmul", "mm", "bmm", "addmm", "baddbmm"}
    | {"conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "einsum", "__matmul__"}
    | {"__rmatmul__", "tensordot", "inner", "cdist", "lstm", "gru", "rnn_tanh", "rnn_relu"}
)


class ProductWatch(TorchFunctionMode):
    """Looks through a forward pass for products of activations with parameters.

    A classifier may be written without a layer: ``x @ self.prototypes.T``, or with normalised
    weights. Tensors made of parameters alone count as parameters.

    Args:
        parameters: names of the model's parameters, by their ids.

    Attributes:
        last: the name of the parameter in the last product outside of all layers, if no layer was
            called after it.
    """

    def __init__(self, parameters: Mapping[int, str]) -> None:
        super().__init__()
        self.last: str | None = None
        self._made_of = dict(parameters)
        self._alive: list[Tensor] = []  # no two tensors share an id
        self._depth = 0

    def enter_layer(self) -> None:
        """The forward of a layer begins; its own products are not looked at."""
        self._depth += 1

    def leave_layer(self) -> None:
        """The forward of a layer has ended."""
        self._depth -= 1
        self.last = None

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if self._depth:
            return output
        given = tensors_in((args, tuple(kwargs.values())))
        names = [self._made_of[id(tensor)] for tensor in given if id(tensor) in self._made_of]
        if names and len(names) == len(given):
            for tensor in tensors_in(output):
                self._alive.append(tensor)
                self._made_of[id(tensor)] = names[0]
        elif names and plain_name(func) in _PRODUCTS:
            self.last = names[0]
        return output
