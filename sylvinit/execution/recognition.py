"""Subclasses of layer types that override ``forward``: recognized by what they compute.

When the forward reaches such a module, it is run aside on random inputs, with random numbers in all
of its parameters (a branch that starts at zero proves nothing), and its output is compared with the
formula of the layer. Then everything is put back, bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sylvinit.execution.backup import TensorBackup
from sylvinit.execution.batches import Batch
from sylvinit.execution.formula import (
    Comparison,
    Products,
    compare,
    compare_outputs,
    evaluate,
    rounding,
)
from sylvinit.execution.guard import CallerModes, forward_modes, same_random_numbers
from sylvinit.execution.module_state import ModuleState
from sylvinit.model import (
    ConvLayer,
    Layer,
    SamePaddedConvLayer,
    StandardizedLayer,
    gains_of,
    layers_as,
    overrides_forward,
    registered_type,
)
from sylvinit.model.modules import clean_name, is_hidden
from sylvinit.model.obstacles import MAPPED

# The solution's scale need not be that of the present weight, by which a quantizer may have been
# set: the formula has to hold for both of these multiples of it.
_SCALES = (1.0, 16.0)

_NEVER_RAN = "its forward was not called"


@dataclass
class Recognized:
    """Modules that override ``forward``: the layers they are, or why they are none."""

    layers: dict[nn.Module, list[Layer]] = field(default_factory=dict)
    reasons: dict[nn.Module, str] = field(default_factory=dict)
    notes: dict[nn.Module, str] = field(default_factory=dict)  # on layers, for the report

    @property
    def uncalled(self) -> set[nn.Module]:
        """Modules of which nothing is known, for they did not run."""
        return {module for module, reason in self.reasons.items() if reason is _NEVER_RAN}

    def unknown(self, names: Mapping[nn.Module, str]) -> str:
        """Why modules of these names are no layers, for an error; empty without such modules."""
        texts = [f"{names[module] or 'the model'} {text}" for module, text in self.reasons.items()]
        more = f"; and {len(texts) - 3} more" if len(texts) > 3 else ""
        return "".join(f"; {text}" for text in texts[:3]) + more


def recognize(
    model: nn.Module, batch: Batch, call: Callable[[Batch], Any], caller: CallerModes
) -> Recognized:
    """Run the model, and look at every module that overrides a layer type's ``forward``."""
    found = Recognized()
    names = {module: clean_name(name) for name, module in model.named_modules()}
    types = {module: cls for module in names if (cls := _overridden_type(module)) is not None}
    if not types:
        return found
    found.reasons = dict.fromkeys(types, _NEVER_RAN)
    asking = False  # a module, which may call others

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        nonlocal asking
        if asking or found.reasons.get(module) is not _NEVER_RAN:
            return
        asking = True
        try:
            _look_at(module, names[module], types[module], args, kwargs, found)
        finally:
            asking = False

    with ExitStack() as stack:
        for module in types:
            handle = module.register_forward_pre_hook(before, with_kwargs=True)
            stack.callback(handle.remove)
        stack.enter_context(same_random_numbers())
        stack.enter_context(forward_modes(caller))
        call(batch)
    return found


def _overridden_type(module: nn.Module) -> type | None:
    cls = registered_type(module)
    return cls if cls is not None and overrides_forward(module, cls) else None


def _look_at(
    module: nn.Module,
    name: str,
    cls: type,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    found: Recognized,
) -> None:
    kind = cls.__name__
    try:
        readings = _readings(cls, module, name)
        x = Layer.input(readings[0][0], args, kwargs)
        if is_hidden(x):
            found.reasons[module] = MAPPED.reason
            return
        with _Probe(module, cls, readings, x, args, kwargs) as probe:
            result = _best_reading(probe)
    except Exception as error:  # the module's own, and whatever it makes of unusual numbers
        text = f"{type(error).__name__}: {error}".partition("\n")[0]
        found.reasons[module] = _overrides(kind, f"fails on random numbers: {text}")
        return
    if isinstance(result, str):
        found.reasons[module] = _overrides(kind, result)
        return
    layers, comparison = result
    del found.reasons[module]
    found.layers[module] = layers
    if not comparison.equal and not layers[0].centers_rows:
        found.notes[module] = (
            f"computes the formula of {kind} to {comparison.error:.1%} (quantized or of low "
            "precision)"
        )


def _overrides(kind: str, what: str) -> str:
    remedy = "sylvinit.register_layer says how to read and write its weight"
    return f"overrides the forward of {kind} with one that {what} ({remedy})"


def _readings(cls: type, module: nn.Module, name: str) -> list[list[Layer]]:
    """What the module may be."""
    layers = layers_as(cls, module, name)
    if len(layers) == 1 and isinstance(layers[0], ConvLayer):
        return [layers, [SamePaddedConvLayer(module, name)]]
    return [layers]


def _best_reading(probe: _Probe) -> tuple[list[Layer], Comparison] | str:
    """What the module is and how well that fits; or what it does that no layer does."""
    if not probe.is_determined():
        return "gives other outputs for the same input, be they random or of earlier calls"
    errors: list[float] = []
    for layers in probe.readings:
        comparisons = probe.comparisons(layers)
        if all(comparison.close for comparison in comparisons):
            return layers, max(comparisons, key=lambda comparison: comparison.error)
        if comparisons[0].close:
            return "computes it for weights of the present range alone (a quantizer that was set?)"
        errors.append(comparisons[0].error)
    for layers in probe.readings:
        for gain in (*gains_of(layers[0]), None) if len(layers) == 1 else ():
            layer = StandardizedLayer(layers[0], gain)
            layer.norm = probe.factor(layer)
            comparisons = probe.comparisons([layer])
            if all(comparison.close for comparison in comparisons):
                return [layer], comparisons[0]
    off = f"is off by {min(errors):.0%}" if min(errors) < math.inf else "has another shape"
    return f"computes something else: on random numbers its output {off}"


class _Probe:
    """A module run aside on random inputs and weights; as a context, it puts everything back."""

    def __init__(
        self,
        module: nn.Module,
        cls: type,
        readings: list[list[Layer]],
        x: Tensor,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> None:
        self.readings = readings
        self._module, self._cls = module, cls
        size = float(x.detach().double().square().mean().sqrt())
        self._size = size if 0 < size < math.inf else 1.0
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)) * self._size
        self._x, self._random = x, torch.empty_like(x).copy_(noise)
        self._given = args, kwargs
        self._state = ModuleState(module.modules())
        self._buffers = [TensorBackup(buffer) for buffer in module.buffers()]
        self._parameters = [TensorBackup(parameter) for parameter in module.parameters()]
        self._values: list[tuple[Tensor, Tensor]] = []  # random ones, of parameters
        self._outputs: dict[float, Any] = {}

    def __enter__(self) -> _Probe:
        return self

    def __exit__(self, *error: object) -> None:
        self._restore_state()
        for backup in self._parameters:
            backup.restore()

    def _restore_state(self) -> None:
        self._state.restore()
        for backup in self._buffers:
            backup.restore()

    def is_determined(self) -> bool:
        """Whether equal inputs make equal outputs."""
        comparison = self._compare_tensors(self._output(_SCALES[0]), self._run(_SCALES[0]))
        return comparison.equal or comparison.error == math.inf  # which are no outputs of layers

    def comparisons(self, layers: list[Layer]) -> list[Comparison]:
        """The output beside the formula of what it may be, for each size while they are close."""
        found: list[Comparison] = []
        for scale in _SCALES:
            found.append(self._compare(layers, scale))
            if not found[-1].close:
                break
        return found

    def factor(self, layer: Layer) -> float:
        """By how much W x has to be multiplied to be nearest to the output without the bias."""
        products = self._products(layer, _SCALES[0])
        if products is None:
            return 1.0
        given = products.products.flatten()
        return float((products.output - products.bias).flatten() @ given / (given @ given))

    def _compare(self, layers: list[Layer], scale: float) -> Comparison:
        if len(layers) > 1:
            return self._compare_tensors(self._output(scale), self._run(scale, self._cls))
        products = self._products(layers[0], scale)
        return Comparison.none() if products is None else compare(products)

    def _products(self, layer: Layer, scale: float) -> Products | None:
        output = self._output(scale)
        self._randomize(scale)
        return evaluate(layer, *self._arguments(), output)

    def _output(self, scale: float) -> Any:
        if scale not in self._outputs:
            self._outputs[scale] = self._run(scale)
        return self._outputs[scale]

    def _run(self, scale: float, cls: type | None = None) -> Any:
        """The output from the state at the beginning and random parameters; as a ``cls``."""
        self._restore_state()
        self._randomize(scale)
        forward = self._module.forward if cls is None else partial(cls.forward, self._module)
        args, kwargs = self._arguments()
        output = forward(*args, **kwargs)
        return output.clone() if isinstance(output, Tensor) else output  # it may be written again

    def _arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Those of the call with random numbers for x, and copies of what may be written to."""
        args, kwargs = self._given
        copies: dict[int, Tensor] = {id(self._x): self._random.clone()}
        return _copied(tuple(args), copies), _copied(dict(kwargs), copies)

    def _compare_tensors(self, one: Any, other: Any) -> Comparison:
        """Outputs of two forwards; of tuples, the first of each."""
        if isinstance(one, tuple) and isinstance(other, tuple):
            return self._compare_tensors(one[0], other[0])
        if not isinstance(one, Tensor) or not isinstance(other, Tensor) or one.shape != other.shape:
            return Comparison.none()
        weight = self.readings[0][0].get_weight()
        bound = rounding(weight.shape[2], one, weight)
        one, other = one.double(), other.double()
        return compare_outputs(one, other, one.square().mean().sqrt(), bound)

    def _randomize(self, scale: float) -> None:
        if not self._values:
            self._values = self._random_values()
        for parameter, values in self._values:
            _write(parameter, values * scale)

    def _random_values(self) -> list[tuple[Tensor, Tensor]]:
        """Random parameters of the size that they have, or should have where they are zero.

        A quantizer that was set by the weights finds them in the same range. They have a mean, for
        layers that take it away. Biases are as large as the products they are added to.
        """
        generator = torch.Generator().manual_seed(0)
        found: dict[int, tuple[Tensor, Tensor]] = {}
        for parameter in self._module.parameters():
            if not parameter.is_floating_point() or parameter.layout != torch.strided:
                continue
            values = torch.rand(parameter.shape, generator=generator) * 1.5 - 0.5
            present = float(parameter.detach().float().square().mean().sqrt())
            if not 0 < present < math.inf:
                present = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 1.0
            found[id(parameter)] = parameter, values.mul_(math.sqrt(3) * present)
            _write(*found[id(parameter)])
        layers = self.readings[0]
        if len(layers) == 1 and "bias" in layers[0].tensors():
            size = float(layers[0].get_weight().float().square().sum(dim=2).mean().sqrt())
            for parameter in layers[0].parameters("bias"):
                values = torch.randn(parameter.shape, generator=generator)
                found[id(parameter)] = parameter, values * (self._size * size)
        return list(found.values())


def _copied(value: Any, copies: dict[int, Tensor]) -> Any:
    """Plain containers and the tensors in them, the same ones where they were the same."""
    if isinstance(value, Tensor):
        if id(value) not in copies:
            copies[id(value)] = value.clone()
        return copies[id(value)]
    if type(value) in (tuple, list):
        return type(value)(_copied(item, copies) for item in value)
    if type(value) is dict:
        return {key: _copied(item, copies) for key, item in value.items()}
    return value


def _write(parameter: Tensor, values: Tensor) -> None:
    with torch.inference_mode(parameter.is_inference()), torch.no_grad():
        parameter.copy_(values)
