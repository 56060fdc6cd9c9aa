"""Watching any training loop from outside."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sylvinit.checks import check_count, check_flag
from sylvinit.diagnostics.gradients import sum_dtype
from sylvinit.diagnostics.probes import FeatureProbe, LayerProbe, find_layers
from sylvinit.diagnostics.record import Record
from sylvinit.diagnostics.updates import Statistics, UpdateWatch
from sylvinit.errors import ModelError, OptionError, OptionTypeError, SylvinitWarning
from sylvinit.model.modules import check_module


def monitor(
    model: nn.Module, every: int = 1, activations: bool = True, features: str | None = None
) -> AbstractContextManager[Record]:
    """Record how a model trains, in any loop and with any torch optimizer.

    >>> with sylvinit.diagnostics.monitor(model) as record:
    ...     for epoch in range(epochs):
    ...         for x, y in loader:
    ...             optimizer.zero_grad()
    ...             loss_fn(model(x), y).backward()
    ...             optimizer.step()
    ...         record.end_epoch(accuracy=accuracy(model))

    The loop may be anywhere, also inside a trainer: an update is seen when an optimizer that holds
    at least one parameter of the model begins its step, so gradients are those it uses, after
    accumulation, unscaling and clipping. (A step with a closure is seen at its end, since it
    computes the gradients itself.) If several optimizers share the parameters, each step of each is
    an update, of its own parameters, compared with its own last one. Loops without a torch
    optimizer call ``record.update()``.

    Recorded of an update, see :meth:`Record.history`:

    - ``sign_changes`` between its gradient and that of the update before
      (:func:`gradient_sign_changes`). NaN at the first update. A parameter without a gradient at
      one of the two is left out.
    - ``gradient_magnitude``, the mean magnitude of the entries (:func:`gradient_magnitude`).
    - for each layer, a module that contains no other module and has a weight of two or more axes:
      ``activation_variance`` of its output and ``gradient_variance`` of the gradient with respect
      to this output, both of all entries about their mean; and ``dead``, the number of units
      (channels of a convolution, else the last axis) whose gradient is exactly zero at every sample
      and position. They pool all forwards with gradients since the update before, and all their
      backward passes, so microbatches give the same as one batch; forwards under ``no_grad`` do
      not count, and those that checkpointing repeats count once. Gradients have the scale of the
      loss ``backward`` was called on, a loss scale included; a step that a GradScaler skips is no
      update, and what its backward left is pooled with the next. An update that follows another one
      without a forward, as with two optimizers, shows the same.
    - ``effective_rank`` of what the module ``features`` is fed (:func:`effective_rank`, centered),
      in the last forward with gradients before the update. Only this waits for the device.

    The model, its gradients, modes, buffers and the state of random numbers stay as they are; no
    hook is left behind, whatever ends the block. Parameters and modules that are added within the
    block are not seen, nor are compiled modules, those in TorchScript, and modules whose output is
    not one tensor. Monitors can be nested.

    Args:
        model: any module with parameters. Wrappers (torch.compile, DataParallel) are looked
            through, in the names of layers, too.
        every: record only the updates 0, every, 2 every, ... of each optimizer. Others cost next to
            nothing, but for the signs of the one before a recorded one, a byte per parameter.
        activations: record the statistics of layers.
        features: name of a module, as in ``model.named_modules()``.

    Returns:
        A context manager whose value is the :class:`Record`.

    Raises:
        OptionError: ``every`` is not positive, or the model has no module called ``features``.
        OptionTypeError: an argument has the wrong type.
        ModelError: the model has no parameters, or a lazy one that no forward has made yet.

    Warns:
        SylvinitWarning: at the end, if nothing could be recorded: updates without a forward of any
            layer (as with ``torch.compile``), forwards without an update, or no features.

    Source: sign changes and magnitude are those of Schneider, "Correlated Initialization for
    Correlated Data", section 6.
    """
    model = check_module(model)
    check_flag("activations", activations)
    every = check_count("every", every)
    parameters = list(model.parameters())
    if not parameters:
        raise ModelError(
            f"model: expected a module with parameters, {type(model).__name__} has none"
        )
    if any(nn.parameter.is_lazy(parameter) for parameter in parameters):
        raise ModelError(
            "model: expected initialized parameters, got lazy ones; run one batch through it before"
        )
    return _watching(_Session(model, every, activations, features))


@contextmanager
def _watching(session: _Session) -> Iterator[Record]:
    with ExitStack() as stack:
        stack.callback(session.close)
        for handle in session.attach():
            stack.callback(handle.remove)
        yield session.record
    session.warn()


class _Session:
    """One ``with`` block: what happens at a forward, at an update, and at the end."""

    def __init__(
        self, model: nn.Module, every: int, activations: bool, features: str | None
    ) -> None:
        layers = find_layers(model) if activations else {}
        self._layers = {name: LayerProbe(m, self._begin_forward) for name, m in layers.items()}
        self._features = None
        self._probes: list[FeatureProbe | LayerProbe] = [*self._layers.values()]
        if features is not None:
            self._features = FeatureProbe(features, _module(model, features), self._begin_forward)
            self._probes.insert(0, self._features)  # the order of the record's columns
        self._device = next(model.parameters()).device
        self._watch = UpdateWatch(model.parameters(), every, self._on_update)
        self._active = True
        self._fresh = True  # no forward since the last update
        self._forwards = False
        self._due = True
        self.record = Record(list(layers), every, features, self._watch.update)

    def attach(self) -> Iterator[RemovableHandle]:
        yield from self._watch.attach()
        yield from (probe.attach() for probe in self._probes)

    def close(self) -> None:
        # Forget the model and everything on its device.
        self._active = False
        for probe in self._layers.values():
            probe.active = False
        self._watch.close()
        self._clear()
        self.record.close()

    def warn(self) -> None:
        record, missing = self.record, []
        if record.updates == 0 and self._forwards:
            missing.append(
                "no update was seen, because no torch optimizer that holds a parameter of the "
                "model made a step: call record.update() before the parameters change"
            )
        if record.updates and self._layers and not any(p.seen for p in self._layers.values()):
            missing.append(
                "no activation was seen, because no layer ran with gradients outside compiled "
                "code: run the model that torch.compile was given, or pass activations=False"
            )
        features = self._features
        if record.updates and features is not None and not features.seen:
            missing.append(
                f"no features were seen, because {features.name!r} was not given a floating "
                "tensor in a forward with gradients outside compiled code: name another module"
            )
        for text in missing:
            # The frames between: _watching, contextlib.
            warnings.warn(f"monitor: {text}", SylvinitWarning, stacklevel=4)

    def _on_update(self, statistics: Statistics | None) -> None:
        if statistics is not None:
            values: list[Tensor | None] = [*statistics]
            for probe in self._probes:
                values.extend(probe.statistics())
            units = {n: probe.units for n, probe in self._layers.items() if probe.units is not None}
            self.record.add(_packed(values, self._device), units)
        self.record.updates += 1
        self._fresh, self._due = True, self._watch.due

    def _begin_forward(self) -> bool:
        """Note that a forward with gradients runs; whether it is to be recorded."""
        if not self._active:
            return False
        if self._fresh:
            self._fresh = False
            self._clear()
        self._forwards = True
        return self._due

    def _clear(self) -> None:
        for probe in self._probes:
            probe.clear()


def _packed(values: list[Tensor | None], device: torch.device) -> Tensor:
    """0-d tensors as one 1-d tensor on a device, NaN for None."""
    dtype = sum_dtype(device)
    missing = torch.full((), torch.nan, dtype=dtype, device=device)
    return torch.stack([missing if v is None else v.to(device, dtype) for v in values])


def _module(model: nn.Module, name: Any) -> nn.Module:
    if not isinstance(name, str):
        raise OptionTypeError(f"features must be the name of a module or None, got {name!r}")
    modules = dict(model.named_modules())
    if name in modules:
        return modules[name]
    near = difflib.get_close_matches(name, modules, n=3, cutoff=0.4)
    hint = f"near names are {near}" if near else f"names are {[n for n in modules if n][:8]}"
    raise OptionError(f"features: the model has no module {name!r}; {hint}")
