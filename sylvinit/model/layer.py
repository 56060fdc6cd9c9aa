"""The interface of a layer, and the registry of layer types."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sylvinit.errors import ModelError, OptionError, OptionTypeError
from sylvinit.model.geometry import PatchGeometry
from sylvinit.model.obstacles import Obstacle, weight_obstacle
from sylvinit.model.weight_norm import factors_of, norm_of, write_factors


class Layer:
    """One weight y = W x + b of a module, with x the rows or patches of the module's input.

    Subclasses say where the weight lies. W always has shape (groups, outputs, features) and
    features are ordered channels first, then taps in row-major order.

    Attributes:
        module: the module whose forward call provides the input.
        name: qualified name, unique in the model.
        kind: for the report.
        groups: independent groups of channels.
        geometry: which pixels a patch reads, or None if the input is rows (..., features).
        slot: tells apart several layers that share one parameter (packed projections).
        centers_rows: whether all its rows are orthogonal to the constant 1.
    """

    geometry: PatchGeometry | None = None
    groups: int = 1
    slot: str = ""
    centers_rows: bool = False

    def __init__(self, module: nn.Module, name: str) -> None:
        self.module = module
        self.name = name
        self.kind = type(module).__name__

    def get_weight(self) -> Tensor:
        """The weight as (groups, outputs, features)."""
        raise NotImplementedError

    def set_weight(self, weight: Tensor) -> None:
        """Write a weight of shape (groups, outputs, features)."""
        raise NotImplementedError

    def row_scales(self, weight: Tensor) -> Tensor | None:
        """Factors (groups, outputs) that rows get when written, or None: they stay as given."""
        return None

    def notes(self) -> list[str]:
        """What is particular about how the weight is held, for the report."""
        return []

    def get_bias(self) -> Tensor | None:
        """The bias as (groups, outputs), or None."""
        return None

    def set_bias(self, bias: Tensor) -> None:
        """Write a bias of shape (groups, outputs)."""
        raise NotImplementedError

    def tensors(self) -> dict[str, str]:
        """Attribute names on :attr:`owner` of the tensors written, keyed "weight" and "bias"."""
        names = {"weight": "weight"}
        if getattr(self.owner, "bias", None) is not None:
            names["bias"] = "bias"
        return names

    @property
    def owner(self) -> nn.Module:
        """The module that holds the parameters; mostly :attr:`module` itself."""
        return self.module

    def obstacle(self, role: str = "weight") -> Obstacle | None:
        """What is in the way of writing that tensor; None also for parametrized ones."""
        return weight_obstacle(self.owner, self.tensors()[role])

    def reason_to_keep(self) -> str | None:
        """Why the weight must not be written, or None: an obstacle, or it is frozen or empty."""
        obstacle = self.obstacle()
        if obstacle is not None:
            return obstacle.reason
        parameters = self.parameters("weight")
        if any(parameter.numel() == 0 for parameter in parameters):
            return "its weight is empty"
        if not all(parameter.requires_grad for parameter in parameters):
            return "frozen (its weight does not require a gradient)"
        return None

    def input(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        """The layer's input, batch first, from the arguments of the module's forward."""
        if args:
            return args[0]
        for name in ("input", "x", "hidden_states"):
            if name in kwargs:
                return kwargs[name]
        return next(value for value in kwargs.values() if isinstance(value, Tensor))

    def output_size(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], in_size: tuple[int, ...]
    ) -> tuple[int, ...]:
        """Spatial size of the output for an input of spatial size ``in_size``."""
        return () if self.geometry is None else self.geometry.output_size(in_size)

    def parameters(self, role: str) -> list[nn.Parameter]:
        """Leaf parameters behind the tensor of that role ("weight" or "bias").

        Raises:
            ModelError: the tensor is not a parameter, nor parametrized by some.
        """
        attribute = self.tensors()[role]
        if parametrize.is_parametrized(self.owner, attribute):
            return list(self.owner.parametrizations[attribute].parameters())  # type: ignore[index]
        norm = norm_of(self.owner, attribute)
        if norm is not None:
            return factors_of(self.owner, norm)
        value = getattr(self.owner, attribute)
        if not isinstance(value, nn.Parameter):
            raise ModelError(
                f"{self.name}.{attribute} must be a torch.nn.Parameter, got {type(value).__name__}"
                "; leave the layer out with exclude="
            )
        return [value]


class RowLayer(Layer):
    """A layer on rows (..., features) with one group; write two methods to support a new module.

    Example::

        @sylvinit.register_layer(MyLinear)
        class MyLinearLayer(sylvinit.model.RowLayer):
            def weight_matrix(self):                 # (outputs, features)
                return self.module.kernel.t()

            def set_weight_matrix(self, weight):
                self.module.kernel.copy_(weight.t())

            def tensors(self):                       # the parameters it writes
                return {"weight": "kernel"}
    """

    def weight_matrix(self) -> Tensor:
        """The weight as (outputs, features)."""
        return getattr(self.owner, self.tensors()["weight"])

    def set_weight_matrix(self, weight: Tensor) -> None:
        """Write a weight of shape (outputs, features)."""
        assign(self.owner, self.tensors()["weight"], weight)

    def get_weight(self) -> Tensor:
        return self.weight_matrix().detach()[None]

    def set_weight(self, weight: Tensor) -> None:
        self.set_weight_matrix(weight[0])

    def get_bias(self) -> Tensor | None:
        name = self.tensors().get("bias")
        return None if name is None else getattr(self.owner, name).detach()[None]

    def set_bias(self, bias: Tensor) -> None:
        assign(self.owner, self.tensors()["bias"], bias[0])


def assign(module: nn.Module, attribute: str, value: Tensor) -> None:
    """Write a tensor in place, through its parametrization or weight normalization, if any.

    Raises ModelError if that has no right inverse or cannot represent the value.
    """
    current = getattr(module, attribute)
    value = value.to(device=current.device, dtype=current.dtype)
    norm = norm_of(module, attribute)
    if norm is not None:
        write_factors(module, norm, value)
        return
    if not parametrize.is_parametrized(module, attribute):
        with torch.inference_mode(current.is_inference()), torch.no_grad():
            current.copy_(value)
        return
    try:
        setattr(module, attribute, value)
    except (NotImplementedError, RuntimeError, ValueError) as error:
        raise ModelError(
            f"the parametrization of {attribute} cannot be inverted ({error}); leave the layer out "
            "with exclude="
        ) from error
    written = getattr(module, attribute)
    bound = 1e3 * torch.finfo(value.dtype).eps * float(value.abs().max())
    if not float((written - value).abs().max()) <= bound:
        raise ModelError(
            f"the parametrization of {attribute} cannot represent the new weight; leave the layer "
            "out with exclude="
        )


Factory = Callable[[nn.Module, str], list[Layer]]
_REGISTRY: dict[type | str, Factory] = {}


def register_layer(*types: type | str) -> Callable[[Any], Any]:
    """Class decorator: use this :class:`Layer` for modules of these types and their subclasses.

    Args:
        types: module classes, or qualified names "package.module.Class" of classes that need not be
            importable. A function (module, name) -> list[Layer] can be decorated as well, for
            modules that hold several weights. A later registration replaces an earlier one.

    Raises:
        OptionTypeError: a type is neither a class nor a string.
        OptionError: no types were given.
    """
    if not types:
        raise OptionError("register_layer needs at least one module type")
    for item in types:
        if not isinstance(item, (type, str)):
            raise OptionTypeError(f"types must be classes or qualified names, got {item!r}")

    def decorate(target: Any) -> Any:
        def factory(module: nn.Module, name: str) -> list[Layer]:
            made = target(module, name)
            return made if isinstance(made, list) else [made]

        for item in types:
            _REGISTRY[item] = factory
        return target

    return decorate


def layers_of(module: nn.Module, name: str) -> list[Layer]:
    """The layers of a module, by the first registered class of its method resolution order.

    A subclass that overrides ``forward`` may compute something else and has none, until it is
    registered itself or recognized by what it computes (execution/recognition.py).
    """
    cls = registered_type(module)
    if cls is None or overrides_forward(module, cls):
        return []
    return layers_as(cls, module, name)


def registered_type(module: nn.Module) -> type | None:
    """The first class of a module's method resolution order that is registered."""
    return next((cls for cls in type(module).__mro__ if _factory(cls) is not None), None)


def overrides_forward(module: nn.Module, cls: type) -> bool:
    """Whether a module of a subclass of ``cls`` has a forward of its own."""
    computes = ("forward", "_conv_forward")
    return any(getattr(type(module), f, None) is not getattr(cls, f, None) for f in computes)


def layers_as(cls: type, module: nn.Module, name: str) -> list[Layer]:
    """The layers of a module as if it were of the registered class ``cls``."""
    factory = _factory(cls)
    return [] if factory is None else factory(module, name)


def _factory(cls: type) -> Factory | None:
    return _REGISTRY.get(cls) or _REGISTRY.get(f"{cls.__module__}.{cls.__qualname__}")
