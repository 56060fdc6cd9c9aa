"""Which batch normalisations end a residual branch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import reduce
from operator import or_
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sylvinit.model.rectifiers import plain_name, tensors_in

_ADDITIONS = frozenset({"add", "__add__", "__radd__", "__iadd__"})
# What they return is still the output of the normalisation that their argument is.
_SAME = frozenset(
    {"contiguous", "clone", "to", "float", "double", "half", "bfloat16", "type", "type_as", "view"}
    | {"reshape", "view_as", "reshape_as", "flatten", "unflatten", "squeeze", "unsqueeze"}
    | {"transpose", "permute", "movedim", "swapaxes", "dropout", "dropout1d", "dropout2d"}
    | {"dropout3d", "alpha_dropout", "feature_alpha_dropout"}
)
# Products with weights, which make a tensor one layer deeper.
_PRODUCTS = frozenset(
    {"linear", "bilinear", "conv1d", "conv2d", "conv3d", "matmul", "mm", "bmm", "addmm", "baddbmm"}
    | {"conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "einsum", "__matmul__"}
    | {"__rmatmul__", "multi_head_attention_forward"}
)
_NORM = "batch_norm"
# Nothing of their argument is in what they return but its shape and type.
_UNLIKE = frozenset(
    {"ones_like", "zeros_like", "full_like", "empty_like", "rand_like", "randn_like", "new_ones"}
    | {"new_zeros", "new_full", "new_empty", "new_tensor"}
)
_NOTHING: frozenset[int] = frozenset()


@dataclass(frozen=True)
class End:
    """What a residual branch ends in: a batch normalisation, and the layer before it if known."""

    norm: nn.Module
    layer: nn.Module | None


@dataclass(frozen=True)
class _Trace:
    """How a tensor came about. Products with weights, normalisations and sums are numbered.

    Attributes:
        depth: products on the longest way to it.
        sources: the last numbers on the ways to it; an input of the model has one, too.
        past: all numbers on the ways to it, as bits.
        roots: the sources of what a product was made from, for the output of that product and of a
            normalisation right behind it.
        product: the number of that product; 0 is none.
        carried: of the sum of a branch and a shortcut, the sources of the shortcut.
        ends: what it is the output of, or the sum of the outputs of; empty for other tensors.
        layer: the last layer on the way to it, if that is a module.
        normalised: whether it is what a batch normalisation returned.
    """

    depth: int = 0
    sources: frozenset[int] = _NOTHING
    past: int = 0
    roots: frozenset[int] = _NOTHING
    product: int = 0
    carried: frozenset[int] = _NOTHING
    ends: tuple[End, ...] = ()
    layer: nn.Module | None = None
    normalised: bool = False


class BranchWatch(TorchFunctionMode):
    """Follows tensors through a forward pass up to additions.

    An addition of two tensors of one shape ends a residual branch if one of them, the branch, is
    the output of a batch normalisation, and the other one, the shortcut, is something that the
    branch was made from, as it was or behind a single layer and fewer than the branch. So sums of
    parallel layers, of what was made from different inputs, and of branches that end in something
    else are not taken for it. Of parallel branches all are seen that have the same number of layers
    or are added to the shortcut one by one.

    Attributes:
        ends: in how many additions a normalisation and the layer before it end a branch.
    """

    def __init__(self) -> None:
        super().__init__()
        self.ends: Counter[End] = Counter()
        self._traces: dict[int, _Trace] = {}
        self._alive: list[Tensor] = []  # no two tensors share an id
        self._depths = [0]  # of the tensor behind every number
        self._begun = False

    def begin(self, inputs: Any) -> None:
        """Take ``inputs`` as those of the model. Without it the first product's argument is one."""
        self._begun = True
        for tensor in tensors_in(inputs):
            if id(tensor) not in self._traces:  # a model may call itself
                self._set(tensor, self._numbered(_Trace()))

    def passed_layer(self, module: nn.Module, args: Any, output: Any) -> None:
        """Take ``output`` (a tensor, or a tuple of them) as what a layer makes of ``args``."""
        given, made = self._joined(args), self._joined(output)
        if made is None or (given is not None and made.depth <= given.depth):
            # By functions that are none of torch's.
            made = self._product(made or given or self._numbered(_Trace()))
        self._set(output, replace(made, layer=module))

    def passed_norm(self, module: nn.Module, output: Any) -> None:
        """Take ``output`` as that of a batch normalisation, if nothing else was done to it."""
        trace = self._joined(output)
        if trace is not None and trace.normalised:
            self._set(output, replace(trace, ends=(End(module, trace.layer),)))

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        name = plain_name(func)
        given = self._joined((args, tuple(kwargs.values())))
        if given is None and name in _PRODUCTS and not self._begun:
            given = self._numbered(_Trace())
            self._set(tensors_in(args)[:1], given)
        if given is None or name in _UNLIKE:  # made from weights or constants alone
            return func(*args, **kwargs)
        trace = self._after(name, given, args, kwargs)
        output = func(*args, **kwargs)
        self._set(args[0] if name == "__setitem__" else output, trace)
        return output

    def _after(
        self, name: str, given: _Trace, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> _Trace:
        """The trace of what a function makes of tensors whose joined trace is ``given``."""
        if name in _ADDITIONS:
            if _plus_nothing(args, kwargs):
                return given
            if kwargs.get("alpha", 1) == 1 and len(args) == 2 and _same_shape(*args):
                return self._sum(*args)
        if name in _PRODUCTS:
            return self._product(given)
        if name == _NORM:
            made = self._numbered(_Trace(given.depth, past=given.past, layer=given.layer))
            return replace(made, roots=given.roots, product=given.product, normalised=True)
        if name in _SAME:
            return given
        return _Trace(given.depth, given.sources, given.past, layer=given.layer)

    def _sum(self, *summands: Tensor) -> _Trace:
        """The trace of a sum of two tensors, after looking whether it ends a branch."""
        known = [trace for trace in map(self._joined, summands) if trace is not None]
        joined = _join(*known)
        made = self._numbered(_Trace(joined.depth, past=joined.past, layer=joined.layer))
        if len(known) < 2:
            return made
        for branch, shortcut in (known, known[::-1]):
            if self._is_branch(branch, shortcut):
                self.ends.update(branch.ends)
                return replace(made, carried=shortcut.sources | shortcut.carried)
        if all(trace.ends for trace in known):  # parallel branches, before their shortcut
            return replace(made, ends=known[0].ends + known[1].ends)
        return made

    def _is_branch(self, branch: _Trace, shortcut: _Trace) -> bool:
        if not branch.ends:
            return False
        for number in shortcut.sources | shortcut.carried:
            if _in(number, branch.past) and self._depths[number] < branch.depth:
                return True
        if shortcut.depth >= branch.depth or _in(shortcut.product, branch.past):
            return False  # the layer is on the branch, too
        return any(_in(number, branch.past) for number in shortcut.roots)

    def _product(self, given: _Trace) -> _Trace:
        made = self._numbered(_Trace(given.depth + 1, past=given.past))
        roots = given.sources | given.carried
        return replace(made, roots=roots, product=len(self._depths) - 1)

    def _numbered(self, trace: _Trace) -> _Trace:
        number = len(self._depths)
        self._depths.append(trace.depth)
        return replace(trace, sources=frozenset({number}), past=trace.past | 1 << number)

    def _joined(self, value: Any) -> _Trace | None:
        """The trace of what is made of the tensors in a value, None if none of them has one."""
        found = [self._traces[id(t)] for t in tensors_in(value) if id(t) in self._traces]
        return _join(*found) if found else None

    def _set(self, value: Any, trace: _Trace) -> None:
        for tensor in tensors_in(value):
            self._alive.append(tensor)
            self._traces[id(tensor)] = trace


def _join(*traces: _Trace) -> _Trace:
    if len(traces) == 1:
        return traces[0]
    deepest = max(traces, key=lambda trace: trace.depth)
    sources = _NOTHING.union(*(trace.sources for trace in traces))
    past = reduce(or_, (trace.past for trace in traces))
    return _Trace(deepest.depth, sources, past, layer=deepest.layer)


def _in(number: int, past: int) -> bool:
    return bool(past >> number & 1)


def _plus_nothing(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether the number 0 is added, as Python's ``sum`` does first."""
    return not kwargs and any(isinstance(item, int | float) and item == 0 for item in args)


def _same_shape(a: Any, b: Any) -> bool:
    tensors = isinstance(a, Tensor) and isinstance(b, Tensor)
    return tensors and not (a.is_nested or b.is_nested) and a.shape == b.shape
