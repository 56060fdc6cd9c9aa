"""Products with parameters outside of all layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

from sylvinit.model.rectifiers import plain_name, tensors_in

_PRODUCTS = frozenset(
    {"linear", "bilinear", "conv1d", "conv2d", "conv3d", "matmul", "mm", "bmm", "addmm", "baddbmm"}
    | {"conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "einsum", "__matmul__"}
    | {"__rmatmul__", "tensordot", "inner", "cdist", "lstm", "gru", "rnn_tanh", "rnn_relu"}
)


class ProductWatch(TorchFunctionMode):
    """Looks through a forward pass for products of activations with parameters.

    A classifier may be written without a layer: ``x @ self.prototypes.T``, or with normalised
    weights. Tensors made of parameters alone count as parameters. What matters is what becomes of
    the output of the last layer; products beside it (low-rank updates, gates) do not.

    Args:
        parameters: names of the model's parameters, by their ids.

    Attributes:
        last: the name of the parameter in the last product with what was made of the output of
            the last layer.
    """

    def __init__(self, parameters: Mapping[int, str]) -> None:
        super().__init__()
        self.last: str | None = None
        self._made_of = dict(parameters)
        self._alive: list[Tensor] = []  # no two tensors share an id
        self._descends: set[int] = set()
        self._depth = 0

    def enter_layer(self) -> None:
        """The forward of a layer begins; its own products are not looked at."""
        self._depth += 1

    def leave_layer(self, output: Any) -> None:
        """The forward of a layer has ended."""
        self._depth -= 1
        self.last = None
        self._alive += tensors_in(output)
        self._descends = set(map(id, tensors_in(output)))

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
        made = tensors_in(output)
        names = [self._made_of[id(tensor)] for tensor in given if id(tensor) in self._made_of]
        if names and len(names) == len(given):
            self._alive += made
            self._made_of.update((id(tensor), names[0]) for tensor in made)
        elif any(id(tensor) in self._descends for tensor in given):
            self._alive += made
            self._descends.update(map(id, made))
            if names and plain_name(func) in _PRODUCTS:
                self.last = names[0]
        return output
