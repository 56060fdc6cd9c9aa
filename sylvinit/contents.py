"""Which objects the attributes of modules are: read together, put back together.

A forward may store things on modules: the input of a skip connection, a mask cached for the size of
the batch, what ``torch.func.functional_call`` puts in the place of parameters. Forwards that take
turns would find what another one has stored, so these attributes are exchanged together with the
forwards, like the switches of :mod:`sylvinit.switches`.

Looked at is which objects there are, and what plain lists, dicts and sets among them hold; not the
values of tensors. What a forward keeps elsewhere (in a global variable, a closure) is not seen.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict, deque
from collections.abc import Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field
from operator import is_
from typing import Any

import torch
from torch import nn

from sylvinit.norms import NORM_TYPES

_PARAMETERS, _BUFFERS, _CHILDREN = _INNER = ("_parameters", "_buffers", "_modules")
# These dictionaries are looked into or, if they hold hooks, left alone: we register hooks, too.
_OF_EVERY_MODULE = frozenset(nn.Module().__dict__) - {"training", "_non_persistent_buffers_set"}
_CONTAINERS = frozenset({list, dict, set, deque, OrderedDict, defaultdict})
_MISSING = object()


@dataclass(frozen=True)
class _Place:
    """One dictionary of a module: that of its attributes, parameters, buffers or children."""

    module: nn.Module
    name: str
    entries: dict[str, Any]


@dataclass(frozen=True)
class Values:
    """What a place held.

    Attributes:
        entries: the objects.
        inside: of the plain containers among them, what was in them.
    """

    entries: dict[str, Any]
    inside: list[tuple[Any, Any]]


@dataclass
class Lender:
    """Contents of modules that belong to one forward alone, by the number of their place."""

    values: dict[int, Values] = field(default_factory=dict)


class ModuleContents:
    """The contents of modules, and which of them forwards change.

    Args:
        modules: those that are looked at; parts in TorchScript are passed over.

    Attributes:
        replaces_weights: whether a forward has been put aside in which a parameter, or a statistic
            of a batch normalisation, is another object than outside.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._places = [
            _Place(module, name, module.__dict__[name] if name else module.__dict__)
            for module in modules
            if not isinstance(module, torch.jit.ScriptModule)
            for name in ("", *_INNER)
        ]
        self._changing: set[int] = set()
        self.replaces_weights = False

    def read(self) -> list[Values]:
        """What all places hold."""
        return [_read(place) for place in self._places]

    def write(self, values: list[Values], modules: Container[nn.Module] | None = None) -> None:
        """Put back what :meth:`read` has returned, but for children that have come since.

        Args:
            values: of all places.
            modules: those to be written; None writes all.
        """
        for place, old in zip(self._places, values, strict=True):
            if modules is not None and place.module not in modules:
                continue
            if place.name == _CHILDREN:
                old = Values({**place.entries, **old.entries}, [])
            elif not place.name:
                children = place.module._modules
                kept = {key: value for key, value in old.entries.items() if key not in children}
                old = Values(kept, old.inside)
            _write(place, old)

    @contextmanager
    def lent(self, lender: Lender, *, watch: bool) -> Iterator[None]:
        """A forward's own contents, as it left them at its last pause; put aside afterwards.

        Args:
            lender: where they are kept.
            watch: look at everything, for what this part of the forward changes. Otherwise only
                those places are exchanged of which it is known that they change.
        """
        before = self.read() if watch else []
        outside = self._exchange(lender.values)
        try:
            yield
        finally:
            for number in self._changed(before):
                self._changing.add(number)
                outside.setdefault(number, before[number])
            lender.values = self._exchange(outside)
            aside = lender.values.items()
            self.replaces_weights |= any(self._is_of_weights(*item) for item in aside)

    def _exchange(self, values: Mapping[int, Values]) -> dict[int, Values]:
        """Write the places that are given; what all that change held before."""
        before = {number: _read(self._places[number]) for number in self._changing}
        for number, new in values.items():
            _write(self._places[number], new)
        return before

    def _changed(self, before: list[Values]) -> list[int]:
        """Numbers of the places that hold something else than before."""
        pairs = enumerate(zip(self._places, before, strict=True)) if before else ()
        return [number for number, (place, old) in pairs if not _unchanged(place, old)]

    def _is_of_weights(self, number: int, values: Values) -> bool:
        """Whether a place, put aside by a forward, holds other weights or statistics than now."""
        place = self._places[number]
        if _same_entries(place.entries, values.entries):
            return False
        statistics = place.name == _BUFFERS and isinstance(place.module, NORM_TYPES)
        return statistics or place.name == _PARAMETERS


def _read(place: _Place) -> Values:
    entries = dict(place.entries)
    if place.name:
        return Values(entries, [])
    inside = [
        (value, copy(value))
        for name, value in entries.items()
        if type(value) in _CONTAINERS and name not in _OF_EVERY_MODULE
    ]
    return Values(entries, inside)


def _unchanged(place: _Place, old: Values) -> bool:
    if not _same_entries(place.entries, old.entries):
        return False
    return all(_same_inside(value, held) for value, held in old.inside)


def _same_entries(a: Mapping[Any, Any], b: Mapping[Any, Any]) -> bool:
    return list(a) == list(b) and all(map(is_, a.values(), b.values()))


def _same_inside(value: Any, held: Any) -> bool:
    if isinstance(value, dict):
        return _same_entries(value, held)
    if isinstance(value, set):
        return value == held
    return len(value) == len(held) and all(map(is_, value, held))


def _write(place: _Place, values: Values) -> None:
    entries, wanted = place.entries, values.entries
    for name in entries.keys() - wanted.keys():
        del entries[name]
    for name, value in wanted.items():
        if entries.get(name, _MISSING) is not value:
            entries[name] = value
    if place.name and list(entries) != list(wanted):  # the order of a state dict
        ordered = {name: entries.pop(name) for name in wanted}
        entries.update(ordered)
    for value, held in values.inside:
        if _same_inside(value, held):
            continue
        value.clear()
        (value.extend if isinstance(value, (list, deque)) else value.update)(held)
