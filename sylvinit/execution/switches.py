"""Process-wide switches of torch and Python: read together, put back together.

Forwards that take turns leave their ``with`` blocks in any order, so that each block would restore
what another one had set. The switches are therefore exchanged together with the forwards.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.nn.utils import parametrize

Read = Callable[[], Any]
Write = Callable[[Any], None]
Switches = list[Any]

_UNREADABLE = object()  # torch refuses to read a setting made through both its old and its new API


def read_switches() -> Switches:
    """The present value of every switch."""
    return [_read(read) for read, _ in _SWITCHES]


def exchange_switches(values: Switches) -> Switches:
    """Set every switch that has another value; what they were before."""
    before = read_switches()
    if before != values:
        for (read, write), value in zip(_SWITCHES, values, strict=True):
            # Read again, for a precision may be a part of an earlier one.
            if value is not _UNREADABLE and _read(read) != value:
                write(value)
    return before


def write_caching(value: int) -> None:
    """Within ``parametrize.cached()`` or outside; the cache may hold weights as they were."""
    parametrize._cache_enabled = value
    parametrize._cache = {}


def _read(read: Read) -> Any:
    try:
        return read()
    except RuntimeError:
        return _UNREADABLE


def _attribute(owner: Any, name: str) -> tuple[Read, Write]:
    return lambda: getattr(owner, name), lambda value: setattr(owner, name, value)


# What warnings.catch_warnings replaces. The list of filters is also changed in place.
_WARNINGS = ("showwarning", "_showwarnmsg_impl", "filters")


def _read_warnings() -> tuple[Any, ...]:
    attributes = [getattr(warnings, name) for name in _WARNINGS]
    return id(attributes[-1]), attributes, list(attributes[-1])


def _write_warnings(value: tuple[Any, ...]) -> None:
    _, attributes, filters = value
    for name, attribute in zip(_WARNINGS, attributes, strict=True):
        setattr(warnings, name, attribute)
    attributes[-1][:] = filters
    with warnings.catch_warnings():
        pass  # tells the interpreter that the filters have changed


def _precisions() -> list[tuple[Read, Write]]:
    """Precisions of float32 products for every library and operation, in newer torch."""
    read = getattr(torch._C, "_get_fp32_precision_getter", None)
    write = getattr(torch._C, "_set_fp32_precision_setter", None)
    if read is None or write is None:
        return []
    places = [(library, part) for library in ("cuda", "mkldnn") for part in ("matmul", "conv")]
    return [(partial(read, *place), partial(write, *place)) for place in (*places, ("cuda", "rnn"))]


def _attention_kernels() -> list[tuple[Read, Write]]:
    """Which kernels scaled_dot_product_attention may use, and in which order it tries them."""
    names = [
        (f"_get_{kernel}_sdp_enabled", f"_set_sdp_use_{kernel}")
        for kernel in ("cudnn", "flash", "math", "mem_efficient", "overrideable", "fa3")
    ]
    names.append(("_get_sdp_priority_order", "_set_sdp_priority_order"))
    return [
        (getattr(torch._C, read), getattr(torch._C, write))
        for read, write in names
        if hasattr(torch._C, read) and hasattr(torch._C, write)
    ]


_SWITCHES: list[tuple[Read, Write]] = [
    (torch.get_default_dtype, torch.set_default_dtype),
    (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
    (torch.backends.mha.get_fastpath_enabled, torch.backends.mha.set_fastpath_enabled),
    *(_attribute(torch.backends.cudnn, name) for name in ("enabled", "benchmark", "deterministic")),
    *_attention_kernels(),
    (lambda: parametrize._cache_enabled, write_caching),
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    _attribute(torch.backends.cudnn, "allow_tf32"),
    *_precisions(),
    (_read_warnings, _write_warnings),
]
