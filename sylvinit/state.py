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
from torch import Tensor, nn

from sylvinit.switches import Switches, exchange_switches, read_switches

_AUTOCAST_DTYPES = {"cpu": torch.bfloat16, "cuda": torch.float16}


class ModelGuard:
    """Context in which a model is in evaluation mode and may be written to.

    On leaving, training flags, RNG states and process-wide switches are restored, and so are all
    buffers but those that :meth:`keep_buffer` named; buffers that a forward has registered are
    removed. If an exception leaves the block (Ctrl-C included), everything is restored, weights bit
    for bit.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._stack = ExitStack()
        self._training: list[tuple[nn.Module, bool]] = []
        self._buffers: dict[tuple[int, str], tuple[nn.Module, Tensor | None, Tensor | None]] = {}
        self._buffer_names: dict[nn.Module, frozenset[str]] = {}
        self._kept: set[tuple[int, str]] = set()
        self._originals: dict[int, tuple[nn.Parameter, Tensor]] = {}

    def __enter__(self) -> ModelGuard:
        try:
            self._stack.enter_context(_global_state(self._model))
            for module in self._model.modules():
                self._training.append((module, module.training))
                # Not .eval(): a user's own train() may do more than set flags.
                module.training = False
            self.save_buffers()
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
        try:
            self._restore_buffers(set() if failed else self._kept)
            if failed:
                for parameter, saved in self._originals.values():
                    _copy(parameter, saved)
        finally:
            for module, training in self._training:
                module.training = training
            self._stack.close()

    def save_buffers(self) -> None:
        """Remember all buffers that are not remembered yet; lazy modules may still add theirs."""
        for module in self._model.modules():
            if not _is_lazy(module):
                self._buffer_names.setdefault(module, frozenset(module._buffers))
            for name, buffer in module._buffers.items():
                lazy = buffer is not None and nn.parameter.is_lazy(buffer)
                if lazy or (id(module), name) in self._buffers:
                    continue
                saved = None if buffer is None else buffer.detach().clone()
                self._buffers[id(module), name] = (module, buffer, saved)

    def restore_buffers(self) -> None:
        """Put all remembered buffers back and remove the others."""
        self._restore_buffers(set())

    def _restore_buffers(self, kept: set[tuple[int, str]]) -> None:
        for (key, name), (module, buffer, saved) in self._buffers.items():
            if (key, name) not in kept:
                if buffer is not None and saved is not None:
                    _copy(buffer, saved)
                module._buffers[name] = buffer
        for module, names in self._buffer_names.items():
            for name in module._buffers.keys() - names:
                delattr(module, name)

    def save(self, parameters: list[nn.Parameter]) -> None:
        """Remember the values of parameters that are about to be written."""
        for parameter in parameters:
            if id(parameter) not in self._originals:
                self._originals[id(parameter)] = (parameter, parameter.detach().clone())

    def restore(self, module: nn.Module, parameters: list[nn.Parameter]) -> None:
        """Put the remembered values of parameters, and of a module's buffers, back."""
        for parameter in parameters:
            if id(parameter) in self._originals:
                _copy(*self._originals[id(parameter)])
        inside = set(module.modules())
        for (_, name), (owner, buffer, saved) in self._buffers.items():
            if owner in inside:
                if buffer is not None and saved is not None:
                    _copy(buffer, saved)
                owner._buffers[name] = buffer

    def keep_buffer(self, module: nn.Module, name: str) -> None:
        """Let a buffer keep what is written to it, if the block succeeds."""
        self._kept.add((id(module), name))


def _is_lazy(module: nn.Module) -> bool:
    own = (*module._parameters.values(), *module._buffers.values())
    return any(tensor is not None and nn.parameter.is_lazy(tensor) for tensor in own)


def _copy(target: Tensor, value: Tensor) -> None:
    if torch.equal(target, value):
        return  # leaves the version counter alone, too
    with torch.inference_mode(target.is_inference()), torch.no_grad():
        target.copy_(value)


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
            _disable_fast_path()
            torch.set_float32_matmul_precision("highest")  # TF32 on CUDA is off with it
            yield
        finally:
            exchange_switches(switches)
            # Autocast would go on to use its casts of the weights as they were.
            torch.clear_autocast_cache()
            np.random.set_state(numpy_state)
            random.setstate(python_state)


def _disable_fast_path() -> None:
    """The fast path of attention calls neither the sub-modules nor their hooks."""
    torch.backends.mha.set_fastpath_enabled(False)


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
class Ambient:
    """The caller's modes, to be put back around the model's forward.

    Attributes:
        autocast: device types and dtypes for which it is on.
        switches: see :mod:`sylvinit.switches`.
    """

    autocast: list[tuple[str, torch.dtype]]
    switches: Switches

    @classmethod
    def present(cls) -> Ambient:
        """Those of now."""
        autocast = [
            (device, torch.get_autocast_dtype(device))
            for device in _AUTOCAST_DTYPES
            if torch.is_autocast_enabled(device)
        ]
        return cls(autocast, read_switches())


@contextmanager
def forward_modes(ambient: Ambient) -> Iterator[None]:
    """The modes of the model's forward: no gradients, and else the caller's.

    Autocast's cache of casted weights is off, since weights are written in the middle of a forward.
    """
    with ExitStack() as stack:
        stack.callback(exchange_switches, exchange_switches(ambient.switches))
        _disable_fast_path()
        stack.enter_context(torch.no_grad())
        for device, dtype in ambient.autocast:
            stack.enter_context(torch.autocast(device, dtype=dtype, cache_enabled=False))
        yield
