"""Which objects the attributes of modules are: read together, put back together.

A forward may store things on modules: the input of a skip connection, a mask cached for the size of
the batch, what ``torch.func.functional_call`` puts in the place of parameters. Forwards that take
turns would find what another one has stored, so these attributes are exchanged together with the
forwards, like the switches of :mod:`sylvinit.execution.switches`.

Looked at is which objects there are: attributes, parameters, buffers, children, hooks, and what
small plain lists, dicts, sets and deques among the attributes hold. Not looked at are the values of
tensors, what containers within containers or other objects hold, and what a forward keeps elsewhere
(in a global variable, a closure).
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict, deque
from collections.abc import Container, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
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


@dataclass(frozen=True)
class _Place:
    """Something of a module that holds objects: one of its dictionaries, or a container in them."""

    module: nn.Module
    name: str
    holder: Any

    @property
    def is_container(self) -> bool:
        """Whether it is a container that an attribute refers to."""
        return self.name not in _DICTIONARIES


@dataclass
class Lender:
    """What places hold for one forward alone, by their numbers."""

    held: dict[int, Any] = field(default_factory=dict)


class ModuleContents:
    """The contents of modules, and which of them forwards change.

    Args:
        modules: those that are looked at, as they are now; parts in TorchScript are passed over.

    Attributes:
        replaces_weights: whether a forward has been put aside in which a parameter, or a statistic
            of a batch normalisation, is another object than outside.
        late: modules of which it was found too late that a forward changes them, so that others
            may have found what it has stored.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._places = [place for module in modules for place in _places(module)]
        self._outside = [_copy(place.holder) for place in self._places]
        self._views = [_objects(place.holder) for place in self._places]
        self._ids = self._present_ids()
        self._changing: dict[int, None] = {}
        self._in_containers: Lender | None = None
        self.replaces_weights = False
        self.late: list[nn.Module] = []

    def restore(self, *, left: Container[nn.Module] = ()) -> None:
        """Put everything back, but for children and parameters that have come since.

        Args:
            left: modules whose attributes, parameters, buffers and children stay as they are.
        """
        for place, held in zip(self._places, self._outside, strict=True):
            if place.is_container or place.module not in left:
                _write(place, _with_new_parts(place, held))

    def restore_module(self, module: nn.Module) -> None:
        """Put the attributes, parameters, buffers and children of a module back, not its hooks."""
        inside = set(module.modules())
        for place, held in zip(self._places, self._outside, strict=True):
            if place.module in inside and not place.is_container:
                _write(place, _with_new_parts(place, held))

    def accept(self, module: nn.Module) -> None:
        """Take what a module holds now as what it holds outside of the forwards."""
        changed = self._changed()
        if not changed:
            return
        inside = set(module.modules())
        for number in changed:
            place = self._places[number]
            if place.module in inside and not place.is_container:
                self._outside[number] = _copy(place.holder)
        self._ids = list(map(id, chain.from_iterable(map(_objects, self._outside))))

    @contextmanager
    def lent(self, lender: Lender, *, watch: bool) -> Iterator[None]:
        """A forward's own contents, as it left them at its last pause; put aside afterwards.

        Containers are put aside only when another forward goes on: this one may be iterating.

        Args:
            lender: where they are kept.
            watch: look at everything, for what this part of the forward changes. Otherwise only
                those places are exchanged of which it is known that they change.
        """
        if watch:
            self.put_back_unknown()
        self._exchange_containers(lender)
        for number, held in lender.held.items():
            if not self._places[number].is_container:
                _write(self._places[number], held)
        try:
            yield
        finally:
            if watch:
                self._changing.update(dict.fromkeys(self._changed()))
            for number in self._changing:
                place = self._places[number]
                if not place.is_container:
                    lender.held[number] = held = _copy(place.holder)
                    _write(place, self._outside[number])
                    self.replaces_weights |= _is_of_weights(place, held)

    def put_back_unknown(self) -> None:
        """Look at what forwards have left that were not watched, and put it back."""
        new = [number for number in self._changed() if number not in self._changing]
        self._changing.update(dict.fromkeys(new))
        for number in new:
            _write(self._places[number], self._outside[number])
            self.late.append(self._places[number].module)

    def _exchange_containers(self, lender: Lender) -> None:
        if self._in_containers is lender:
            return
        for number in self._changing:
            place = self._places[number]
            if place.is_container:
                if self._in_containers is not None:
                    self._in_containers.held[number] = _copy(place.holder)
                _write(place, lender.held.get(number, self._outside[number]))
        self._in_containers = lender

    def _present_ids(self) -> list[int]:
        return list(map(id, chain.from_iterable(self._views)))

    def _changed(self) -> list[int]:
        """Numbers of the places that hold something else than outside."""
        if self._present_ids() == self._ids:  # faster than place by place
            return []
        pairs = enumerate(zip(self._places, self._outside, strict=True))
        return [number for number, (place, held) in pairs if not _same(place.holder, held)]


def _places(module: nn.Module) -> list[_Place]:
    if isinstance(module, torch.jit.ScriptModule):
        return []
    attributes = module.__dict__
    places = [
        _Place(module, name, attributes[name] if name else attributes) for name in _DICTIONARIES
    ]
    places += [
        _Place(module, name, value)
        for name, value in attributes.items()
        if type(value) in _CONTAINERS and name not in _DICTIONARIES
        if len(value) <= _LARGEST_CONTAINER
    ]
    return places


def _objects(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value


def _copy(value: Any) -> Any:
    return dict(value) if isinstance(value, dict) else value.copy()


def _same(a: Any, b: Any) -> bool:
    """Whether two containers hold the same objects, in the same order and under the same keys."""
    if len(a) != len(b) or not all(map(is_, _objects(a), _objects(b))):
        return False
    return not isinstance(a, dict) or all(map(is_, a, b))


def _write(place: _Place, held: Any) -> None:
    holder = place.holder
    if _same(holder, held):
        return
    if place.is_container:
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
    if place.name and list(holder) != list(held):  # the order of a state dict
        ordered = {name: holder.pop(name) for name in held}
        holder.update(ordered)


def _with_new_parts(place: _Place, held: Any) -> Any:
    """What is to be written so that children and parameters stay that were made since."""
    if place.name in (_CHILDREN, _PARAMETERS):
        new = {name: part for name, part in place.holder.items() if held.get(name) is None}
        return {**held, **new}
    if place.name == _ATTRIBUTES:
        parts = place.module._modules.keys() | place.module._parameters.keys()
        return {name: value for name, value in held.items() if name not in parts}
    return held


def _is_of_weights(place: _Place, held: Any) -> bool:
    """Whether a place, put aside by a forward, held other weights or statistics than now."""
    statistics = place.name == _BUFFERS and isinstance(place.module, NORM_TYPES)
    return (statistics or place.name == _PARAMETERS) and not _same(place.holder, held)
