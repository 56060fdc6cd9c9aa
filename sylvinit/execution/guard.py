"""Leaving the user's model and process as they were: modes, buffers, weights, RNG, switches."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import TracebackType

import numpy as np
import torch
from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin

from sylvinit.execution.backup import TensorBackup
from sylvinit.execution.module_state import ModuleState
from sylvinit.execution.switches import Switches, exchange_switches, read_switches, write_caching

_AUTOCAST_DTYPES = {"cpu": torch.bfloat16, "cuda": torch.float16}


class ModelGuard:
    """Context in which a model is in evaluation mode and may be written to.

    On leaving, training flags, RNG states and process-wide switches are restored, and so is what
    else a forward may have changed (module_state.py) and all buffers but those that
    :meth:`keep_buffer` named; modules that a forward has made stay. If an exception leaves the
    block (Ctrl-C included), everything is restored, weights bit for bit.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._stack = ExitStack()
        self._training: dict[nn.Module, bool] = {}
        self._states: list[ModuleState] = []
        self._accepted: set[nn.Module] = set()
        self._known: set[nn.Module] = set()
        self._buffers: dict[tuple[nn.Module, str], TensorBackup] = {}
        self._kept: set[tuple[nn.Module, str]] = set()
        self._parameters: dict[int, TensorBackup] = {}

    def __enter__(self) -> ModelGuard:
        try:
            self._stack.enter_context(_global_state(self._model))
            self.remember()
        except BaseException:  # no memory for the copies, Ctrl-C
            self.__exit__(*sys.exc_info())
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        failed = kind is not None
        with ExitStack() as stack:  # last in, first out, and all of it even if one fails
            stack.callback(self._stack.close)
            for module, training in self._training.items():
                stack.callback(setattr, module, "training", training)
            if failed:
                for backup in self._parameters.values():
                    stack.callback(backup.restore)
            stack.callback(self.restore_forward, keep=not failed)

    def remember(self) -> bool:
        """Remember modules that are new, in evaluation mode from now on; whether there were any.

        Lazy modules are left for later.
        """
        found = [module for module in self._model.modules() if module not in self._known]
        for module in found:
            self._training.setdefault(module, module.training)
            # Not .eval(): a user's own train() may do more than set flags.
            module.training = False
        found = [module for module in found if not _is_lazy(module)]
        for module in found:
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    self._buffers[module, name] = TensorBackup(buffer)
        if found:
            self._states.append(ModuleState(found))
            self._known.update(found)
        return bool(found)

    def restore_forward(self, *, keep: bool = False) -> None:
        """Put back attributes and buffers that forwards changed; ``keep`` what was written."""
        written = [self._buffers[key] for key in self._kept & self._buffers.keys()]
        written += self._parameters.values()
        kept_memory = {backup.memory() for backup in written} if keep else set()
        with ExitStack() as stack:
            for buffer in self._buffers.values():
                if buffer.memory() not in kept_memory:
                    stack.callback(buffer.restore)
            for state in self._states:
                stack.callback(state.restore, left=self._accepted if keep else ())

    def undo(self) -> None:
        """Put back all that was written, bit for bit; the block goes on as if it had just begun."""
        self._accepted.clear()
        self._kept.clear()
        self.restore_forward()
        for backup in self._parameters.values():
            backup.restore()

    def accept(self, module: nn.Module) -> None:
        """Let a module keep what was written to it, if the block succeeds."""
        self._accepted.update(module.modules())

    def save(self, parameters: list[nn.Parameter]) -> None:
        """Remember the values of parameters that are about to be written."""
        for parameter in parameters:
            if id(parameter) not in self._parameters:
                self._parameters[id(parameter)] = TensorBackup(parameter)

    def restore(self, module: nn.Module, parameters: list[nn.Parameter]) -> None:
        """Put the remembered values of parameters, and a module's state and buffers, back."""
        for state in self._states:
            state.restore_module(module)
        for parameter in reversed(parameters):
            if id(parameter) in self._parameters:
                self._parameters[id(parameter)].restore()
        inside = set(module.modules())
        for (owner, _), buffer in self._buffers.items():
            if owner in inside:
                buffer.restore()

    def keep_buffer(self, module: nn.Module, name: str) -> None:
        """Let a buffer keep what is written to it, if the block succeeds."""
        self._kept.add((module, name))


def _is_lazy(module: nn.Module) -> bool:
    if isinstance(module, LazyModuleMixin) and hasattr(module, "_initialize_hook"):
        return True
    own = (*module._parameters.values(), *module._buffers.values())
    return any(tensor is not None and nn.parameter.is_lazy(tensor) for tensor in own)


@contextmanager
def same_random_numbers() -> Iterator[None]:
    """The generators of torch, NumPy and Python are as before the block after it, too."""
    numpy_state, python_state = np.random.get_state(), random.getstate()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            np.random.set_state(numpy_state)
            random.setstate(python_state)


@contextmanager
def _global_state(model: nn.Module) -> Iterator[None]:
    """RNG states and switches kept; no gradients, no compiled graphs, full precision inside."""
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
    switches = read_switches()
    numpy_state, python_state = np.random.get_state(), random.getstate()
    with (
        torch.random.fork_rng(devices=devices),
        plain_modes(),
        torch.compiler.set_stance("force_eager"),
    ):
        try:
            torch.backends.mha.set_fastpath_enabled(False)  # it calls no hooks of sub-modules
            write_caching(0)  # parametrized weights are computed anew after they have been written
            torch.set_float32_matmul_precision("highest")  # TF32 on CUDA is off with it
            yield
        finally:
            exchange_switches(switches)
            # Autocast would go on to use its casts of the weights as they were.
            torch.clear_autocast_cache()
            np.random.set_state(numpy_state)
            random.setstate(python_state)


@contextmanager
def plain_modes() -> Iterator[None]:
    """No gradients, no inference mode, no autocast: for our own arithmetic.

    Forwards that take turns enter and leave their modes in any order. They must all find the same
    ones at their start, so autocast's dtype and cache are set even where it is off.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        for device, dtype in _AUTOCAST_DTYPES.items():
            plain = torch.get_autocast_dtype(device) == dtype and torch.is_autocast_cache_enabled()
            if torch.is_autocast_enabled(device) or not plain:
                off = torch.autocast(device, dtype=dtype, enabled=False, cache_enabled=True)
                stack.enter_context(off)
        yield


@dataclass(frozen=True)
class CallerModes:
    """The caller's autocast and switches, to be put back around the model's forward."""

    autocast: list[tuple[str, torch.dtype]]
    switches: Switches

    @classmethod
    def present(cls) -> CallerModes:
        """Those of now."""
        autocast = [
            (device, torch.get_autocast_dtype(device))
            for device in _AUTOCAST_DTYPES
            if torch.is_autocast_enabled(device)
        ]
        return cls(autocast, read_switches())


@contextmanager
def forward_modes(caller: CallerModes) -> Iterator[None]:
    """The modes of the model's forward: no gradients, and else the caller's.

    Autocast's cache of casted weights is off, since weights are written in the middle of a forward.
    """
    with ExitStack() as stack:
        stack.callback(exchange_switches, exchange_switches(caller.switches))
        torch.backends.mha.set_fastpath_enabled(False)
        stack.enter_context(torch.no_grad())
        for device, dtype in caller.autocast:
            stack.enter_context(torch.autocast(device, dtype=dtype, cache_enabled=False))
        yield
