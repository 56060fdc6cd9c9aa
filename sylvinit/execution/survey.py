"""One look at the model on a few samples: what runs, in which order, how often, and on which input.

This tells, before the data are propagated, which layer is the classifier, which layers share an
input or a weight, and how many calls of a module to wait for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from sylvinit.errors import DataError
from sylvinit.execution.batches import Batch
from sylvinit.execution.guard import CallerModes, ModelGuard, forward_modes
from sylvinit.execution.notes import noted
from sylvinit.execution.recognition import Recognized, recognize
from sylvinit.model import Layer, layers_of
from sylvinit.model.batch_norm import NORM_TYPES, Norm
from sylvinit.model.modules import clean_name, family, is_hidden
from sylvinit.model.tracing import Branch, ForwardTrace

# Samples that the survey runs: more than one, so that batch and other axes are told apart.
SURVEY_SAMPLES = 2


class Survey:
    """What was seen. A point is a :class:`Layer` or a :class:`Norm`; ids are those of points."""

    def __init__(
        self,
        names: dict[nn.Module, str],
        points: dict[nn.Module, list[Any]],
        recognized: Recognized,
    ) -> None:
        self.names = names  # qualified, of every module
        self.points = points  # of the modules that have some, in order of need
        self.recognized = recognized  # modules that override the forward of a layer type
        self.samples = 0  # that the model ran on
        self.whole = False  # whether it had to be all of the first batch
        self.order: list[Any] = []  # points that ran, in order of their first calls
        self.calls: Counter[nn.Module] = Counter()
        self.most_calls: Counter[nn.Module] = Counter()  # on a microbatch later on
        self.last: Layer | None = None  # the layer whose last call was the last of all
        # Equal for layers whose first calls saw the same patches of the same values.
        self.inputs: dict[int, tuple[Any, ...]] = {}
        self.shapes: dict[int, tuple[int, ...]] = {}  # of the inputs of layers' first calls
        self.hidden: set[int] = set()  # whose input cannot be looked at, as inside of torch.vmap
        self.rectified: set[nn.Module] = set()  # whose output is rectified before the next layer
        self.branches: list[Branch] = []  # ends of residual branches, one for every addition
        self.addends: set[nn.Module] = set()  # whose output is added to what they had no part in
        self.bypassed: set[nn.Module] = set()  # whose weight was used without a call
        # Name of the parameter of a product outside of all layers that follows the last one.
        self.final_parameter: str | None = None
        # For tensors in the model's output: layers that they are weighted sums of, and the weights.
        self.sums: list[dict[nn.Module, float]] = []

    @property
    def layers(self) -> list[Layer]:
        """Layers that ran, in order of their first calls."""
        return [point for point in self.order if isinstance(point, Layer)]

    @property
    def norms(self) -> list[Norm]:
        """Normalizations that ran, in order of their first calls."""
        return [point for point in self.order if isinstance(point, Norm)]

    def point_names(self) -> tuple[list[str], list[str]]:
        """Names of all layers and of all normalizations, whether they ran or not."""
        found = [point for points in self.points.values() for point in points]
        layers = [point.name for point in found if isinstance(point, Layer)]
        return layers, [point.name for point in found if not isinstance(point, Layer)]


def survey_model(
    model: nn.Module,
    batch: Batch,
    call: Callable[[Batch], Any],
    caller: CallerModes,
    guard: ModelGuard,
) -> Survey:
    """What runs on the first samples of a batch, including modules that their forward makes.

    All of the batch is taken where the forward fails on so few (a fixed batch size, a graph), and
    where experts get none of their rows.
    """
    few = batch.head(SURVEY_SAMPLES)
    try:
        survey = _survey_on(few, model, call, caller, guard)
    except Exception:
        if few.size == batch.size:
            raise
        guard.restore_forward()
        survey = _survey_on(batch, model, call, caller, guard)
        survey.whole = True
        return survey
    if few.size < batch.size and _misses_experts(survey):
        try:
            wider = _survey_on(batch, model, call, caller, guard)
        except Exception:  # what is wrong with the batch will be seen when it is propagated
            guard.restore_forward()
        else:
            survey = wider if len(wider.order) >= len(survey.order) else survey
    return survey


def _survey_on(
    batch: Batch,
    model: nn.Module,
    call: Callable[[Batch], Any],
    caller: CallerModes,
    guard: ModelGuard,
) -> Survey:
    if any(is_lazy(parameter) for parameter in model.parameters()):
        with forward_modes(caller), noted(batch, "to materialize lazy modules"):
            call(batch)
        guard.restore_forward()
        guard.remember()

    def look() -> Survey:
        with noted(batch, "to see what its subclasses of layers compute"):
            recognized = recognize(model, batch, call, caller)
        guard.restore_forward()
        survey = _find_points(model, recognized)
        _run(survey, batch, call, caller)
        guard.restore_forward()  # a mask that was cached for two samples would not fit the others
        return survey

    survey = look()
    for _ in range(2):  # some forwards make new modules every time
        if guard.remember():
            survey = look()
    survey.samples = batch.size
    return survey


def _misses_experts(survey: Survey) -> bool:
    """Whether a layer got no rows, or did not run although others of its family did."""
    ran = {family(survey.names[module]) for module in survey.calls}
    idle = (survey.points.keys() | survey.recognized.uncalled) - survey.calls.keys()
    missed = any(family(survey.names[module]) in ran for module in idle)
    return missed or any(0 in shape for shape in survey.shapes.values())


def _find_points(model: nn.Module, recognized: Recognized) -> Survey:
    names = {module: clean_name(name) for name, module in model.named_modules()}
    points: dict[nn.Module, list[Any]] = {}
    owned: set[nn.Module] = set()  # the output projection of attention never runs itself
    for module, name in names.items():
        if isinstance(module, NORM_TYPES):
            points[module] = [Norm(module, name)]
        elif module not in owned:
            layers = recognized.layers.get(module) or layers_of(module, name)
            if layers:
                points[module] = list(layers)
            owned.update(layer.owner for layer in layers)
    return Survey(names, points, recognized)


def _run(survey: Survey, batch: Batch, call: Callable[[Batch], Any], caller: CallerModes) -> None:
    """Run the model and write down what happens."""
    kept: list[Tensor] = []  # alive, so that no two inputs share an address
    parameters = _parameter_names(survey)
    held = {
        module: frozenset(parameters[id(parameter)] for parameter in module.parameters())
        for module in survey.points
    }
    trace = ForwardTrace(parameters)
    asking = False  # a layer for its input, for which it may call its module

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        nonlocal asking
        if asking:
            return
        survey.calls[module] += 1
        points = survey.points[module]
        if isinstance(points[0], Layer):
            survey.last = points[-1]
            trace.enter_layer(held[module])
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
            _check_input(point, x)
            kept.append(x)
            if is_hidden(x):
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
        stack.enter_context(noted(batch, "to see which layers run"))
        output = call(batch)
    survey.sums = trace.shares_in(output)
    survey.rectified, survey.branches = trace.rectified, trace.branches
    survey.final_parameter, survey.addends = trace.final_parameter, trace.addends
    survey.bypassed = {module for module, names in held.items() if names & trace.unheld}


def _check_input(point: Any, x: Any) -> None:
    if isinstance(x, Tensor) and not x.is_nested:
        return
    kind = "nested tensor" if isinstance(x, Tensor) else type(x).__name__
    raise DataError(
        f"{point.name or 'the model'} ({point.kind}) was called with a {kind}, but expects a "
        "tensor. A batch holds one tensor for each argument of the forward: stack or pad samples, "
        "or say with forward_fn= what the model is called with"
    )


def _parameter_names(survey: Survey) -> dict[int, str]:
    """Names of all parameters, by their ids."""
    return {
        id(parameter): f"{module_name}.{name}" if module_name else name
        for module, module_name in survey.names.items()
        for name, parameter in module._parameters.items()
    }


def _identity(layer: Layer, x: Tensor) -> tuple[Any, ...]:
    if is_hidden(x):
        return (id(x), layer.geometry, layer.groups)
    version = 0 if x.is_inference() else x._version
    memory = (x.untyped_storage().data_ptr(), x.storage_offset(), tuple(x.shape), x.stride())
    return (*memory, version, layer.geometry, layer.groups)
