"""Which batch normalisations end a residual branch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sylvinit.rectifiers import tensors_in

_ADDITIONS = frozenset({"add", "__add__", "__radd__", "__iadd__"})
# What they return still is the output of the module.
_SAME = frozenset(
    {"contiguous", "clone", "to", "view", "reshape", "dropout", "dropout1d", "dropout2d"}
    | {"dropout3d", "alpha_dropout", "feature_alpha_dropout"}
)


@dataclass(frozen=True)
class _Trace:
    """How a tensor came about.

    Attributes:
        depth: layers on the longest way to it from the input.
        norm: the batch normalisation whose output it is.
    """

    depth: int
    norm: nn.Module | None = None


class BranchWatch(TorchFunctionMode):
    """Follows tensors through a forward pass up to additions.

    Where two tensors of the same shape are added, the one behind more layers is a residual branch,
    and the other its shortcut (which may have a layer of its own). Not seen are sums that are not
    written as additions (of stacked or concatenated tensors), and branches that end in something
    else than a batch normalisation.

    Attributes:
        ends: batch normalisations that end a branch, in order of the additions.
    """

    def __init__(self) -> None:
        super().__init__()
        self.ends: dict[nn.Module, None] = {}
        self._traces: dict[int, _Trace] = {}
        self._alive: list[Tensor] = []  # no two tensors share an id

    def passed_layer(self, args: Any, output: Any) -> None:
        """Take ``output`` (a tensor, or a tuple of them) as what a layer makes of ``args``."""
        self._set(output, _Trace(1 + max(self._depth(args), self._depth(output))))

    def passed_norm(self, module: nn.Module, args: Any, output: Any) -> None:
        """Take ``output`` as what a batch normalisation makes of ``args``."""
        self._set(output, _Trace(max(self._depth(args), self._depth(output)), module))

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        given = tensors_in((args, tuple(kwargs.values())))
        traces = [self._trace(tensor) for tensor in given]
        name = getattr(func, "__name__", "")
        name = name if name.startswith("__") else name.strip("_")
        if name in _ADDITIONS and len(given) == 2 and given[0].shape == given[1].shape:
            deeper, other = sorted(traces, key=lambda trace: -trace.depth)
            if deeper.norm is not None and deeper.depth > other.depth:
                self.ends[deeper.norm] = None
        output = func(*args, **kwargs)
        if traces:
            depth = max(trace.depth for trace in traces)
            same = name in _SAME and len(traces) == 1
            self._set(output, traces[0] if same else _Trace(depth))
        return output

    def _trace(self, tensor: Tensor) -> _Trace:
        return self._traces.get(id(tensor), _INPUT)

    def _depth(self, value: Any) -> int:
        return max((self._trace(tensor).depth for tensor in tensors_in(value)), default=0)

    def _set(self, value: Any, trace: _Trace) -> None:
        for tensor in tensors_in(value):
            self._alive.append(tensor)
            self._traces[id(tensor)] = trace


_INPUT = _Trace(0)
