"""Which outputs of layers a tensor is a weighted sum of, seen from the functions of torch.

A network with several classifiers answers with their mean, (a(x) + b(x)) / 2, or with the mean of a
stack of them: each of them is a head then.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from torch import Tensor, nn

_SCALINGS = frozenset({"mul", "multiply", "__mul__", "__rmul__", "__imul__"})
_DIVISIONS = frozenset({"div", "divide", "true_divide", "__truediv__", "__itruediv__"})
ADDITIONS = frozenset({"add", "__add__", "__radd__", "__iadd__"})
# By a layer's attribute for its number of outputs, and how many axes they have: the axis of the
# outputs, and those that the rows of one sample lie along, which are tokens or pixels.
_POOLINGS = {
    ("out_features", 3): (2, [1]),
    ("out_channels", 3): (1, [2]),
    ("out_channels", 4): (1, [2, 3]),
}
# What is made of an answer in the end. A sum of two of these is no longer linear.
_ANSWERS = frozenset({"softmax", "log_softmax", "sigmoid", "logsigmoid"})


@dataclass(frozen=True)
class Term:
    """A layer's output in a sum."""

    layer: nn.Module
    past: int  # numbers of all outputs on the way to it, as bits
    coefficient: float


@dataclass(frozen=True)
class WeightedSum:
    """Terms by the numbers of their outputs."""

    terms: Mapping[int, Term]
    stacked: tuple[int, int] | None = None  # how many sums lie along which axis; this is their mean
    is_answer: bool = False  # the sum has gone through a function and stays what it is


def shares_of(sums: Sequence[WeightedSum | None]) -> list[dict[nn.Module, float]]:
    """Coefficients of the layers in each of a network's outputs.

    Empty for None, and where one of them is negative or has a part in what another layer of any
    output is made of.
    """
    terms = {n: x for found in sums if found is not None for n, x in found.terms.items()}

    def shares(found: WeightedSum) -> dict[nn.Module, float]:
        coefficients: dict[nn.Module, float] = {}
        for number, term in found.terms.items():
            others = (x for x in terms.values() if x.layer is not term.layer)
            if term.coefficient <= 0 or any(x.past >> number & 1 for x in others):
                return {}
            coefficients[term.layer] = coefficients.get(term.layer, 0.0) + term.coefficient
        return coefficients

    return [{} if found is None else shares(found) for found in sums]


def sum_after(
    name: str,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    known: Callable[[Any], WeightedSum | None],
) -> WeightedSum | None:
    """What the function ``name`` of torch makes of tensors, as far as it is a weighted sum.

    ``known`` tells the sum that a tensor is. Functions that only reshape are none of these.
    """
    first, second = cast("tuple[Any, Any]", (*args, None, None)[:2])
    if name == "stack":
        return _stack(first, kwargs.get("dim", second) or 0, known)
    if name in _SCALINGS and _is_number(first):
        first, second = second, first
    given = known(first)
    if name in ADDITIONS and "alpha" not in kwargs:
        return _add(first, kwargs.get("other", second), known)
    if given is None:
        return None
    if name in _ANSWERS:
        return replace(given, is_answer=True)
    if given.is_answer:
        return None
    if name in _SCALINGS and _is_number(second):
        return _scaled(given, float(second))
    if name in _DIVISIONS and _is_number(second) and second and not kwargs:
        return _scaled(given, 1 / float(second))
    if name in ("mean", "sum", "max", "amax"):
        return _reduced(name, given, first, kwargs.get("dim", second))
    return None


def _add(a: Any, b: Any, known: Callable[[Any], WeightedSum | None]) -> WeightedSum | None:
    one, other = known(a), known(b)
    if one is None or other is None:  # sum() begins with 0
        return one if _is_number(b) and b == 0 else None
    if a.shape != b.shape or one.is_answer or other.is_answer or one.stacked != other.stacked:
        return None
    return replace(one, terms=_joined(one.terms, other.terms))


def _stack(
    tensors: Any, axis: int, known: Callable[[Any], WeightedSum | None]
) -> WeightedSum | None:
    if not isinstance(tensors, (tuple, list)) or not tensors:
        return None
    terms: Mapping[int, Term] = {}
    for x in tensors:
        found = known(x)
        if found is None or found.is_answer or found.stacked is not None:
            return None
        terms = _joined(terms, _scaled(found, 1 / len(tensors)).terms)
    return WeightedSum(terms, (len(tensors), axis % (tensors[0].ndim + 1)))


def _reduced(name: str, given: WeightedSum, x: Tensor, axes: Any) -> WeightedSum | None:
    """The mean or sum over the axis of a stack; the mean or maximum over tokens or pixels.

    All rows of a sample have its label, and so has their mean, and about so their maximum.
    """
    axes = [axes] if isinstance(axes, int) else axes
    if not isinstance(axes, (tuple, list)) or not all(isinstance(i, int) for i in axes):
        return None
    axes = sorted(i % max(x.ndim, 1) for i in axes)
    if given.stacked is None:
        pools = name != "sum" and all(_pools(t.layer, x, axes) for t in given.terms.values())
        return given if pools else None
    count, axis = given.stacked
    if axes != [axis] or name not in ("mean", "sum"):
        return None
    return replace(_scaled(given, count if name == "sum" else 1), stacked=None)


def _pools(layer: nn.Module, x: Tensor, axes: list[int]) -> bool:
    """Whether the other axis beside that of the samples is the one of a layer's outputs."""
    return any(
        x.ndim == ndim and axes == pooled and x.shape[axis] == getattr(layer, name, None)
        for (name, ndim), (axis, pooled) in _POOLINGS.items()
    )


def _joined(one: Mapping[int, Term], other: Mapping[int, Term]) -> Mapping[int, Term]:
    joined = dict(one)
    for number, term in other.items():
        before = joined[number].coefficient if number in joined else 0.0
        joined[number] = replace(term, coefficient=before + term.coefficient)
    return joined


def _scaled(given: WeightedSum, factor: float) -> WeightedSum:
    terms = {n: replace(x, coefficient=factor * x.coefficient) for n, x in given.terms.items()}
    return replace(given, terms=terms)


def _is_number(x: Any) -> bool:
    return isinstance(x, (int, float)) and not isinstance(x, bool)
