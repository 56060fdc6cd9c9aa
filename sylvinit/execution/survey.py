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
from sylvinit.execution.guard import Ambient, forward_modes
from sylvinit.model import Layer, layers_of
from sylvinit.model.batch_norm import NORM_TYPES, Norm
from sylvinit.model.branches import BranchWatch, End
from sylvinit.model.modules import clean_name
from sylvinit.model.products import ProductWatch
from sylvinit.model.rectifiers import RectifierWatch

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
        outside: name of a parameter that a product outside of all layers uses after the last one.
        samples: that were run.
        branch_ends: in how many additions a batch normalisation, and the layer before it, end a
            residual branch.
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
    outside: str | None = None
    samples: int = 0
    branch_ends: Counter[End] = field(default_factory=Counter)

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
    survey: Survey,
    batch: Batch,
    call: Callable[[Batch], Any],
    ambient: Ambient,
    *,
    branches: bool = False,
) -> None:
    """Run the model on the first samples of a batch and write down what happens.

    Residual branches are looked for only if ``branches`` says so.
    """
    kept: list[Tensor] = []  # alive, so that no two inputs share an address
    observing = False

    def observe(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        nonlocal observing
        if observing:
            return
        survey.calls[module] += 1
        if isinstance(survey.points[module][0], Layer):
            products.enter_layer()
        for point in survey.points[module]:
            if isinstance(point, Layer):
                survey.last = point
        if survey.calls[module] > 1:
            return
        for point in survey.points[module]:
            survey.order.append(point)
            observing = True
            try:
                x = point.input(args, kwargs)
            finally:
                observing = False
            kept.append(x)
            if _is_hidden(x):
                survey.hidden.add(id(point))
            if isinstance(point, Layer):
                survey.inputs[id(point)] = _identity(point, x)
                survey.shapes[id(point)] = tuple(x.shape)

    rectifiers, watch = RectifierWatch(), BranchWatch()
    products = ProductWatch(_parameter_names(survey))

    def follow(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if observing:
            return
        points = survey.points[module]
        if isinstance(points[0], Norm):
            watch.passed_norm(module, output)
            return
        products.leave_layer(output)
        if branches:
            watch.passed_layer(module, args, output)
        if len(points) == 1:
            rectifiers.begin(module, output)

    def begin(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        watch.begin((args, tuple(kwargs.values())))

    handles = [
        module.register_forward_pre_hook(observe, with_kwargs=True) for module in survey.points
    ]
    handles += [module.register_forward_hook(follow) for module in survey.points]
    if branches and survey.points:
        root = next(iter(survey.names))
        handles.append(root.register_forward_pre_hook(begin, with_kwargs=True))
    try:
        with ExitStack() as stack:
            modes = (forward_modes(ambient), products, rectifiers, *([watch] if branches else []))
            for mode in modes:
                stack.enter_context(mode)
            first = batch.head(SURVEY_SAMPLES)
            survey.samples = first.size
            call(first)
        survey.rectified, survey.branch_ends = rectifiers.rectified, watch.ends
        survey.outside = products.last
    finally:
        for handle in handles:
            handle.remove()


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
    ambient: Ambient,
) -> bool:
    """Let lazy modules take their shapes from a first forward; whether there were any."""
    if not any(is_lazy(parameter) for parameter in model.parameters()):
        return False
    with forward_modes(ambient):
        call(batch.head(SURVEY_SAMPLES))
    return True
