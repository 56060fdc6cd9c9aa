"""What forwards store on modules: compared, put back, and kept private to one microbatch.

A forward may store things on modules: the input of a skip connection, a mask cached for the size of
the batch, what ``torch.func.functional_call`` puts in the place of parameters. Forwards that take
turns would find what another one has stored. So a microbatch that pauses takes what it has changed
with it and brings it back when it goes on, like the switches of
:mod:`sylvinit.execution.switches`.

Looked at is which objects there are: attributes, parameters, buffers, children, hooks, and what
small plain lists, dicts, sets and deques among the attributes hold. Not looked at are the values of
tensors, what containers within containers or other objects hold, and what a forward keeps elsewhere
(in a global variable, a closure).
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict, deque
from collections.abc import Container, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from operator import is_
from typing import Any

import torch
from torch import nn

from sylvinit.model.batch_norm import NORM_TYPES

_ATTRIBUTES, _PARAMETERS, _BUFFERS, _CHILDREN = "", "_parameters", "_buffers", "_modules"
_DICTIONARIES = (_ATTRIBUTES, _PARAMETERS, _BUFFERS, _CHILDREN)
_CONTAINERS = frozenset({list, dict, set, deque, OrderedDict, defaultdict})
_LARGEST_CONTAINER = 256  # a vocabulary is no place for activations

_END = object()

# What one microbatch alone has stored: contents of slots, by their index.
PrivateState = dict[int, Any]


@dataclass(frozen=True)
class _Slot:
    """One of a module's own dictionaries, or a container that an attribute of it refers to."""

    module: nn.Module
    name: str
    holder: Any

    @property
    def is_container(self) -> bool:
        return self.name not in _DICTIONARIES


class ModuleState:
    """The state of modules between forwards (as they are now), and which parts forwards change.

    Modules in TorchScript are passed over.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._slots = [slot for module in modules for slot in _slots(module)]
        self._saved = [_copy(slot.holder) for slot in self._slots]
        self._changing: dict[int, None] = {}  # indices of the slots that forwards change, in order
        self._in_containers: PrivateState | None = None  # whose contents are there
        self._watch()

    @property
    def replaces_weights(self) -> bool:
        """Whether forwards put others in the place of parameters or statistics of batch norms."""
        return any(_holds_weights(self._slots[index]) for index in self._changing)

    def restore(self, *, left: Container[nn.Module] = ()) -> None:
        """Put everything back, but for children and parameters that have come since.

        Of modules in ``left``, only containers are put back.
        """
        for slot, saved in zip(self._slots, self._saved, strict=True):
            if slot.is_container or slot.module not in left:
                _write(slot, _with_new_parts(slot, saved))

    def restore_module(self, module: nn.Module) -> None:
        """Put the attributes, parameters, buffers and children of a module back, not its hooks."""
        for index in self._inside(module):
            slot = self._slots[index]
            _write(slot, _with_new_parts(slot, self._saved[index]))

    def accept(self, module: nn.Module) -> None:
        """Take what a module holds now as its state between forwards."""
        slots, saved = self._slots, self._saved
        other = [i for i in self._inside(module) if not _same(slots[i].holder, saved[i])]
        for index in other:
            self._saved[index] = _copy(self._slots[index].holder)
        if other:  # most layers write into the parameters that they have
            self._watch()

    @contextmanager
    def exchanged(self, private: PrivateState) -> Iterator[None]:
        """What a microbatch stored before its last pause is there; at the next it takes it along.

        Containers stay as it left them until another microbatch goes on: it may be iterating.
        """
        if self._in_containers is not private:
            for index in filter(self._is_container, self._changing):
                slot = self._slots[index]
                if self._in_containers is not None:
                    self._in_containers[index] = _copy(slot.holder)
                _write(slot, private.get(index, self._saved[index]))
            self._in_containers = private
        for index, held in private.items():
            if not self._is_container(index):
                _write(self._slots[index], held)
        try:
            yield
        finally:
            self._find_changing()
            for index in self._changing:
                if not self._is_container(index):
                    private[index] = _copy(self._slots[index].holder)
                    _write(self._slots[index], self._saved[index])

    def _is_container(self, index: int) -> bool:
        return self._slots[index].is_container

    def _inside(self, module: nn.Module) -> list[int]:
        """Indices of the dictionaries of a module and all modules in it."""
        inside = set(module.modules())
        return [
            index
            for index, slot in enumerate(self._slots)
            if slot.module in inside and not slot.is_container
        ]

    def _watch(self) -> None:
        """Look at the slots that no forward is known to change; the others are exchanged anyway."""
        quiet = [index for index in range(len(self._slots)) if index not in self._changing]
        self._views = [_objects(self._slots[index].holder) for index in quiet]
        saved = chain.from_iterable(_objects(self._saved[index]) for index in quiet)
        self._saved_objects = [*saved, _END]

    def _find_changing(self) -> None:
        present = chain(chain.from_iterable(self._views), (_END,))
        if all(map(is_, present, self._saved_objects)):  # faster than slot by slot
            return
        for index, (slot, saved) in enumerate(zip(self._slots, self._saved, strict=True)):
            if not _same(slot.holder, saved):
                self._changing[index] = None
        self._watch()


def _slots(module: nn.Module) -> list[_Slot]:
    if isinstance(module, torch.jit.ScriptModule):
        return []
    attributes = module.__dict__
    slots = [
        _Slot(module, name, attributes[name] if name else attributes) for name in _DICTIONARIES
    ]
    return slots + [
        _Slot(module, name, value)
        for name, value in attributes.items()
        if type(value) in _CONTAINERS and name not in _DICTIONARIES
        if len(value) <= _LARGEST_CONTAINER
    ]


def _objects(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value


def _copy(value: Any) -> Any:
    return dict(value) if isinstance(value, dict) else value.copy()


def _same(a: Any, b: Any) -> bool:
    """Whether two containers hold the same objects, in the same order and under the same keys."""
    if len(a) != len(b):
        return False
    if not a:  # most dictionaries of most modules
        return True
    if not all(map(is_, _objects(a), _objects(b))):
        return False
    return not isinstance(a, dict) or all(map(is_, a, b))


def _write(slot: _Slot, held: Any) -> None:
    holder = slot.holder
    if _same(holder, held):
        return
    if slot.is_container:
        if isinstance(holder, list):
            holder[:] = held
        else:
            holder.clear()
            (holder.extend if isinstance(holder, deque) else holder.update)(held)
        return
    for name in holder.keys() - held.keys():
        del holder[name]
    for name, value in held.items():
        if name not in holder or holder[name] is not value:
            holder[name] = value
    if slot.name and list(holder) != list(held):  # the order of a state dict
        ordered = {name: holder.pop(name) for name in held}
        holder.update(ordered)


def _with_new_parts(slot: _Slot, held: Any) -> Any:
    """What is to be written so that children and parameters stay that were made since."""
    if slot.name in (_CHILDREN, _PARAMETERS):
        new = {name: part for name, part in slot.holder.items() if held.get(name) is None}
        return {**held, **new}
    if slot.name == _ATTRIBUTES:
        parts = slot.module._modules.keys() | slot.module._parameters.keys()
        return {name: value for name, value in held.items() if name not in parts}
    return held


def _holds_weights(slot: _Slot) -> bool:
    statistics = slot.name == _BUFFERS and isinstance(slot.module, NORM_TYPES)
    return statistics or slot.name == _PARAMETERS
