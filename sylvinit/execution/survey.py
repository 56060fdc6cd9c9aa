"""One look at the model on a few samples: what runs, in which order, how often, and on which input.

The survey changes nothing. It lets the driver know the classifier, the layers that share an input
or a weight, and how many calls of a module to wait for, before the data are propagated.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from sylvinit.execution.batches import Batch
from sylvinit.execution.guard import CallerModes, forward_modes
from sylvinit.model import Layer, layers_of
from sylvinit.model.batch_norm import NORM_TYPES, Norm
from sylvinit.model.modules import clean_name
from sylvinit.model.tracing import Branch, ForwardTrace

# Samples that the survey runs: more than one, so that batch and other axes are told apart.
SURVEY_SAMPLES = 2

InputKey = tuple[Any, ...]


@dataclass
class Survey:
    """What was seen.

    Attributes:
        names: qualified name of every module.
        points: layers and norms of the modules that have some, in order of need.
        order: points that ran, in order of their first call.
        calls: how often every module ran.
        inputs: identity of the input of every layer's first call, by layer.
        last: the layer whose last call was the last of all.
        most_calls: how often every module ran on a microbatch later on, at most.
        rectified: modules whose output passes through a rectifier before the next layer.
        shapes: of the input of every layer's first call, by layer.
        hidden: points whose input cannot be looked at, inside of ``torch.vmap`` and the like.
        final_parameter: name of the parameter of a product outside of all layers that follows the
            last one, if there is such a product.
        samples: that were run.
        branches: the ends of residual branches, one for every addition.
    """

    names: dict[nn.Module, str]
    points: dict[nn.Module, list[Any]]
    order: list[Any] = field(default_factory=list)
    calls: Counter[nn.Module] = field(default_factory=Counter)
    inputs: dict[int, InputKey] = field(default_factory=dict)
    last: Layer | None = None
    most_calls: Counter[nn.Module] = field(default_factory=Counter)
    rectified: set[nn.Module] = field(default_factory=set)
    shapes: dict[int, tuple[int, ...]] = field(default_factory=dict)
    hidden: set[int] = field(default_factory=set)
    final_parameter: str | None = None
    samples: int = 0
    branches: list[Branch] = field(default_factory=list)

    @property
    def layers(self) -> list[Layer]:
        """Layers that ran, in order of their first call."""
        return [point for point in self.order if isinstance(point, Layer)]

    @property
    def norms(self) -> list[Norm]:
        """Normalisations that ran, in order of their first call."""
        return [point for point in self.order if isinstance(point, Norm)]

    def point_names(self) -> tuple[list[str], list[str]]:
        """Names of all layers and of all normalisations, whether they ran or not."""
        found = [point for points in self.points.values() for point in points]
        layers = [point.name for point in found if isinstance(point, Layer)]
        return layers, [point.name for point in found if not isinstance(point, Layer)]


def find_points(model: nn.Module) -> Survey:
    """The layers and norms of a model, before anything has run."""
    names = {module: clean_name(name) for name, module in model.named_modules()}
    points: dict[nn.Module, list[Any]] = {}
    owned: set[nn.Module] = set()
    for module, name in names.items():
        if module in owned:
            continue
        if isinstance(module, NORM_TYPES):
            points[module] = [Norm(module, name)]
            continue
        layers = layers_of(module, name)
        if layers:
            points[module] = list(layers)
            # The output projection of attention holds a weight but never runs itself.
            owned.update(layer.owner for layer in layers)
    for module in owned:
        if module in points and all(
            not isinstance(point, Layer) or point.module is not module for point in points[module]
        ):
            del points[module]
    return Survey(names, points)


def run_survey(
    survey: Survey, batch: Batch, call: Callable[[Batch], Any], caller: CallerModes
) -> None:
    """Run the model on the first samples of a batch and write down what happens."""
    kept: list[Tensor] = []  # alive, so that no two inputs share an address
    trace = ForwardTrace(_parameter_names(survey))
    asking = False  # a layer for its input, for which it may call its module

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        nonlocal asking
        if asking:
            return
        survey.calls[module] += 1
        points = survey.points[module]
        if isinstance(points[0], Layer):
            survey.last = points[-1]
            trace.enter_layer()
        else:
            trace.enter_norm(module)
        if survey.calls[module] > 1:
            return
        for point in points:
            survey.order.append(point)
            asking = True
            try:
                x = point.input(args, kwargs)
            finally:
                asking = False
            kept.append(x)
            if _is_hidden(x):
                survey.hidden.add(id(point))
            if isinstance(point, Layer):
                survey.inputs[id(point)] = _identity(point, x)
                survey.shapes[id(point)] = tuple(x.shape)

    def after(module: nn.Module, args: Any, kwargs: Mapping[str, Any], output: Any) -> None:
        points = survey.points[module]
        if asking:
            return
        if isinstance(points[0], Layer):
            trace.leave_layer(module, (args, kwargs), output, follow=len(points) == 1)
        else:
            trace.leave_norm()

    with ExitStack() as stack:
        for module in survey.points:
            handles = (
                module.register_forward_pre_hook(before, with_kwargs=True),
                module.register_forward_hook(after, with_kwargs=True),
            )
            for handle in handles:
                stack.callback(handle.remove)
        stack.enter_context(forward_modes(caller))
        stack.enter_context(trace)
        first = batch.head(SURVEY_SAMPLES)
        survey.samples = first.size
        call(first)
    survey.rectified, survey.branches = trace.rectified, trace.branches
    survey.final_parameter = trace.final_parameter


def _parameter_names(survey: Survey) -> dict[int, str]:
    """Names of all parameters, by their ids."""
    return {
        id(parameter): f"{module_name}.{name}" if module_name else name
        for module, module_name in survey.names.items()
        for name, parameter in module._parameters.items()
    }


def _is_hidden(x: Tensor) -> bool:
    """Whether a tensor has no memory of its own, as inside of ``torch.vmap``."""
    try:
        x.untyped_storage().data_ptr()
    except NotImplementedError:
        return True
    return False


def _identity(layer: Layer, x: Tensor) -> InputKey:
    """Equal for layers that see the same patches of the same values."""
    if _is_hidden(x):
        return (id(x), layer.geometry, layer.groups)
    version = 0 if x.is_inference() else x._version
    memory = (x.untyped_storage().data_ptr(), x.storage_offset(), tuple(x.shape), x.stride())
    return (*memory, version, layer.geometry, layer.groups)


def materialise(
    model: nn.Module,
    batch: Batch,
    call: Callable[[Batch], Any],
    caller: CallerModes,
) -> bool:
    """Let lazy modules take their shapes from a first forward; whether there were any."""
    if not any(is_lazy(parameter) for parameter in model.parameters()):
        return False
    with forward_modes(caller):
        call(batch.head(SURVEY_SAMPLES))
    return True
