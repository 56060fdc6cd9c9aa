"""What becomes of the outputs of layers in a forward pass, seen from the functions it calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sylvinit.model.sums import ADDITIONS, Term, WeightedSum, shares_of, sum_after

# By name, for torch, torch.nn.functional and torch.Tensor have most of them in versions of their
# own. What stands in no list is taken to make something new of all its tensors.
#
# Functions f that let positive s through, with slopes near 1, and suppress negative ones: far from
# 0 the slope there is at most a third of that for positive s. So f(s) alone loses most of one sign,
# while f(s) - f(-s) increases with s: what s and -s keep together determines s (for relu6 up to 6).
# This holds with the parameters that they usually have (slopes of leaky ones up to 1/3, threshold
# and value 0), which are not looked at. Missed is what is put together from other functions
# (torch.maximum(x, 0), torch.where(x > 0, x, 0), x * sigmoid(x)) or written in a kernel.
_RECTIFIERS = frozenset(
    {"relu", "relu6", "leaky_relu", "rrelu", "prelu", "elu", "selu", "celu", "gelu", "silu"}
    | {"mish", "hardswish", "softplus", "threshold"}
)
_CLAMPS = frozenset({"clamp", "clip", "clamp_min"})  # rectifiers, if they do so at 0
_SATURATING = frozenset({"softmax", "log_softmax", "tanh", "sigmoid", "hardsigmoid", "hardtanh"})
_PRODUCTS = frozenset(
    {"linear", "bilinear", "conv1d", "conv2d", "conv3d", "matmul", "mm", "bmm", "addmm", "baddbmm"}
    | {"conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "einsum", "__matmul__"}
    | {"__rmatmul__", "tensordot", "inner", "cdist", "lstm", "gru", "rnn_tanh", "rnn_relu"}
    | {"scaled_dot_product_attention", "multi_head_attention_forward"}
)
# The same values in another shape or type; in evaluation mode dropout is one of them.
_RESHAPES = frozenset(
    {"contiguous", "clone", "to", "float", "double", "half", "bfloat16", "type", "type_as", "view"}
    | {"reshape", "view_as", "reshape_as", "flatten", "unflatten", "squeeze", "unsqueeze"}
    | {"transpose", "permute", "movedim", "swapaxes", "dropout", "dropout1d", "dropout2d"}
    | {"dropout3d", "alpha_dropout", "feature_alpha_dropout"}
)
# A weighted sum of layers' outputs stays one.
_KEEP_SUMS = _RESHAPES | {"interpolate"}
# They use nothing of their argument but its shape and type.
_FILLS = frozenset(
    {"ones_like", "zeros_like", "full_like", "empty_like", "rand_like", "randn_like", "new_ones"}
    | {"new_zeros", "new_full", "new_empty", "new_tensor"}
)


@dataclass(frozen=True)
class Branch:
    """The end of a residual branch: a batch normalization, and the layer before it if known."""

    norm: nn.Module
    layer: nn.Module | None


@dataclass(frozen=True)
class _Trace:
    """How a tensor came about. Outputs of layers, normalizations and sums are numbered."""

    depth: int = 0  # layers on the longest way to it
    number: int = 0  # the last one on that way
    past: int = 0  # all numbers on all ways to it, as bits
    layer: nn.Module | None = None  # the last layer on the longest way, if that is a module
    made_by: int = 0  # the number of that layer's output
    norm: nn.Module | None = None  # the batch normalization whose output it is
    # If one layer, with or without a normalization behind it, has made it of an input: the numbers
    # of the layer and of that input.
    projected: tuple[int, int] | None = None
    unrectified: frozenset[nn.Module] = frozenset()  # the layers whose outputs it still stands for
    sum: WeightedSum | None = None  # of outputs of layers, if it is nothing but that

    def is_made_from(self, number: int) -> bool:
        return bool(self.past >> number & 1)


class ForwardTrace(TorchFunctionMode):
    """Follows tensors through a forward pass; whoever runs it tells where layers begin and end.

    A layer's output is rectified if a rectifier follows before the next product: sums, reshapes,
    normalizations and poolings still stand for the layer; saturating functions do not.

    A residual branch ends where two tensors of one shape are added: the output of a batch
    normalization, and a shortcut with fewer layers behind it, which is something that the branch
    was made from, or what a single layer makes of that (a projection, normalized or not).

    ``addends`` are layers whose own output, as a whole, is added to something that they had no part
    in, as that of an adapter. ``unheld`` are names of parameters in products and normalizations
    outside of the modules that hold them: nobody has called those for it.

    ``final_parameter`` is the name of the parameter in the last product outside of all layers with
    something made of the last layer's output: a classifier written as ``x @ self.prototypes.T``,
    say. Tensors made of parameters alone count as parameters. ``parameters`` maps ids to names.

    Sums of outputs of layers, such as the mean of two classifiers, are told by :meth:`shares_in`.
    """

    def __init__(self, parameters: Mapping[int, str]) -> None:
        super().__init__()
        self.rectified: set[nn.Module] = set()  # modules whose output is rectified
        self.branches: list[Branch] = []  # one for every addition that ends one
        self.addends: set[nn.Module] = set()
        self.unheld: set[str] = set()
        self.final_parameter: str | None = None
        self._parameters = dict(parameters)
        self._traces: dict[int, _Trace] = {}
        self._alive: list[Tensor] = []  # no two tensors share an id
        self._count = 0  # of numbers
        self._last_layer = 0  # its number
        self._inside: list[frozenset[str]] = []  # parameters of layers that the forward is in
        self._norm: nn.Module | None = None  # whose forward it is

    def enter_layer(self, parameters: frozenset[str]) -> None:
        """The forward of a layer with these parameters begins; its products are its own."""
        self._inside.append(parameters)

    def leave_layer(self, module: nn.Module, inputs: Any, output: Any, *, follow: bool) -> None:
        """A layer has made ``output`` of ``inputs``; ``follow`` it to a rectifier, or not."""
        self._inside.pop()
        trace = self._product(_tensors(inputs), module)
        unrectified = frozenset({module}) if follow else frozenset()
        own = WeightedSum({trace.number: Term(module, trace.past, 1.0)}) if follow else None
        self._set(output, replace(trace, unrectified=unrectified, sum=own))
        self._last_layer, self.final_parameter = trace.number, None

    def shares_in(self, output: Any) -> list[dict[nn.Module, float]]:
        """For every tensor in the model's output: coefficients of the layers that it is a sum of.

        Empty where it is no sum, or where a layer has a part in what another of them is made of.
        """
        return shares_of(list(map(self._sum_of, _tensors(output))))

    def enter_norm(self, module: nn.Module) -> None:
        """The forward of a batch normalization begins."""
        self._norm = module

    def leave_norm(self) -> None:
        """The forward of a batch normalization ends."""
        self._norm = None

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        name = _plain_name(func)
        tensors = _tensors((args, kwargs))
        names = [self._parameters[id(x)] for x in tensors if id(x) in self._parameters]
        if name in _FILLS:
            return func(*args, **kwargs)
        if names and len(names) == len(tensors):
            output = func(*args, **kwargs)
            for x in _tensors(output):
                self._alive.append(x)
                self._parameters[id(x)] = names[0]
            return output
        trace = self._after(name, tensors, args, kwargs)
        if name in _PRODUCTS or (name == "batch_norm" and self._norm is None):
            self.unheld.update(set(names).difference(*self._inside))
        is_product = name in _PRODUCTS and not self._inside
        if is_product and names and trace is not None and trace.is_made_from(self._last_layer):
            self.final_parameter = names[0]
        if trace is not None:
            trace = replace(trace, sum=self._sum_after(name, args, kwargs))
        output = func(*args, **kwargs)
        if trace is not None:
            self._set(args[0] if name == "__setitem__" else output, trace)
        return output

    def _sum_after(
        self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> WeightedSum | None:
        if name not in _KEEP_SUMS:
            return sum_after(name, tuple(map(self._number, args)), kwargs, self._sum_of)
        given = self._sum_of(args[0]) if args else None
        return None if given is None or given.stacked is not None else given

    def _number(self, x: Any) -> Any:
        """The value of a tensor that is one number and made of parameters alone."""
        known = isinstance(x, Tensor) and id(x) in self._parameters
        return float(x) if known and x.ndim < 2 and x.numel() == 1 else x

    def _sum_of(self, x: Any) -> WeightedSum | None:
        trace = self._traces.get(id(x))
        return None if trace is None else trace.sum

    def _after(
        self, name: str, tensors: list[Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> _Trace | None:
        """The trace of what a function makes of tensors; None if none of them has one."""
        if name in _PRODUCTS and not self._inside:
            return self._product(tensors, None)
        given = self._joined(tensors)
        if given is None or name in _RESHAPES:
            return given
        if name == "batch_norm":
            return replace(self._numbered(given), norm=self._norm, projected=given.projected)
        if name in ADDITIONS and "alpha" not in kwargs and _have_one_shape(args):
            return self._sum(*args)
        if name in _RECTIFIERS or (name in _CLAMPS and _is_at_zero(args, kwargs)):
            self.rectified |= given.unrectified
            given = replace(given, unrectified=frozenset())
        if name in _SATURATING or name in _PRODUCTS:
            given = replace(given, unrectified=frozenset())
        return replace(given, norm=None, projected=None)

    def _product(self, inputs: list[Tensor], layer: nn.Module | None) -> _Trace:
        given = self._joined(inputs)
        if given is None:  # the first product of what the model is given
            given = self._numbered(_Trace())
            self._set([x for x in inputs if id(x) not in self._parameters][:1], given)
        made = self._numbered(replace(given, depth=given.depth + 1, layer=layer))
        made = replace(made, made_by=made.number)
        return replace(made, projected=(made.number, given.number), unrectified=frozenset())

    def _sum(self, a: Tensor, b: Tensor) -> _Trace | None:
        one, other = self._traces.get(id(a)), self._traces.get(id(b))
        if one is not None and other is not None:
            for branch, shortcut in ((one, other), (other, one)):
                if branch.norm is not None and _is_shortcut(shortcut, branch):
                    self.branches.append(Branch(branch.norm, branch.layer))
                if branch.layer is not None and not shortcut.is_made_from(branch.made_by):
                    self.addends.add(branch.layer)
        joined = self._joined([a, b])
        return None if joined is None else self._numbered(joined)

    def _numbered(self, trace: _Trace) -> _Trace:
        self._count += 1
        past = trace.past | 1 << self._count
        return replace(trace, number=self._count, past=past, norm=None, projected=None)

    def _joined(self, tensors: list[Tensor]) -> _Trace | None:
        """The trace of what is made of all these tensors; None if none of them has one."""
        found = [self._traces[id(x)] for x in tensors if id(x) in self._traces]
        if len(found) < 2:
            return found[0] if found else None
        past, unrectified = 0, frozenset[nn.Module]()
        for trace in found:
            past |= trace.past
            unrectified |= trace.unrectified
        deepest = max(found, key=lambda trace: trace.depth)
        return replace(deepest, past=past, norm=None, projected=None, unrectified=unrectified)

    def _set(self, value: Any, trace: _Trace) -> None:
        for x in _tensors(value):
            self._alive.append(x)
            self._traces[id(x)] = trace


def _is_shortcut(shortcut: _Trace, branch: _Trace) -> bool:
    if shortcut.depth >= branch.depth:
        return False
    if shortcut.projected is not None:
        layer, given = shortcut.projected
        if not branch.is_made_from(layer):
            return branch.is_made_from(given)
    return branch.is_made_from(shortcut.number)


def _plain_name(func: Callable[..., Any]) -> str:
    """The name of a function of torch without underscores, but for operators.

    relu_ works in place, and torch.nn.functional.threshold is called _threshold.
    """
    name = getattr(func, "__name__", "")
    return name if name.startswith("__") else name.strip("_")


def _tensors(value: Any) -> list[Tensor]:
    """The tensors in a value and in the tuples, lists and dicts in it."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = tuple(value.values())
    if isinstance(value, (tuple, list)):
        return [x for item in value for x in _tensors(item)]
    return []


def _is_at_zero(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    least = kwargs.get("min", args[1] if len(args) > 1 else None)
    return isinstance(least, (int, float)) and least == 0


def _have_one_shape(args: tuple[Any, ...]) -> bool:
    tensors = len(args) == 2 and all(isinstance(x, Tensor) and not x.is_nested for x in args)
    return tensors and args[0].shape == args[1].shape
