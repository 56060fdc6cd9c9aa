"""A reader for the pickles of the CIFAR-10 data set that can do nothing but build plain data.

An ordinary unpickler runs whatever the file names. This one never imports and never
calls anything on the file's word: the few NumPy names that occur in the official files stand for
inert placeholders, and the bytes of an array are decoded here, after the file has been read.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from sylvinit.errors import DataError

# Data opcodes only. Left out on purpose: INST, OBJ, NEWOBJ and NEWOBJ_EX (build objects), EXT* and
# PERSID (look up elsewhere), INT, LONG, FLOAT and PUT (text, nothing official uses it).
_OPCODES = {
    *("PROTO", "FRAME", "STOP", "MARK", "POP", "POP_MARK", "DUP"),
    *("NONE", "NEWTRUE", "NEWFALSE"),
    *("BININT", "BININT1", "BININT2", "LONG1", "BINSTRING", "SHORT_BINSTRING"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("EMPTY_LIST", "APPEND", "APPENDS", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"),
    *("EMPTY_DICT", "SETITEM", "SETITEMS", "BINGET", "LONG_BINGET", "BINPUT", "LONG_BINPUT"),
    *("MEMOIZE", "GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD"),
}
# An official file uses each of these about six times. The bound keeps nesting shallow: hashing or
# freeing very deep structures overflows the C stack.
_NESTING = {
    *("MARK", "EMPTY_LIST", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_DICT"),
    *("REDUCE", "BUILD"),
}
_MAX_NESTING = 1000


class _Dtype:
    """Stands for ``numpy.dtype('u1')``; nothing else is admitted."""

    def __setstate__(self, state: object) -> None:
        """Byte order and alignment say nothing about single bytes."""


class _Array:
    """Stands for an array of bytes until the whole file has been read."""

    shape: object = None
    raw: object = None
    fortran = False

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, tuple) or len(state) != 5 or not isinstance(state[2], _Dtype):
            raise pickle.UnpicklingError("an array whose state is not that of a uint8 array")
        _, self.shape, _, fortran, self.raw = state
        self.fortran = bool(fortran)

    def decode(self) -> npt.NDArray[np.uint8]:
        raw = self.raw.encode("latin1") if isinstance(self.raw, str) else self.raw
        if not isinstance(raw, bytes | bytearray) or not isinstance(self.shape, tuple):
            raise pickle.UnpicklingError("an array without shape or bytes")
        shape = self.shape
        if not all(isinstance(size, int) and size >= 0 for size in shape):
            raise pickle.UnpicklingError("an array with an impossible shape")
        if math.prod(shape) != len(raw):
            raise pickle.UnpicklingError(f"an array of shape {shape} with {len(raw)} bytes")
        flat = np.frombuffer(raw, np.uint8)
        return flat.reshape(shape, order="F" if self.fortran else "C")


class _Symbol:
    """Stands for a function or class that the file names; calling it builds placeholders only."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, *args: Any) -> object:
        match self.name, args:
            case "_reconstruct", (_Symbol(name="ndarray"), tuple(), str() | bytes()):
                return _Array()
            case "dtype", ("u1" | b"u1" | "uint8" | "|u1", *_):
                return _Dtype()
            case "encode", (str(text), "latin1" | b"latin1"):
                return text.encode("latin1")
            case "_frombuffer", (raw, _Dtype() as dtype, shape, order):
                array = _Array()
                array.__setstate__((1, shape, dtype, order in ("F", b"F"), raw))
                return array
        raise pickle.UnpicklingError(f"an unexpected call of {self.name}")

    def __setstate__(self, state: object) -> NoReturn:
        raise pickle.UnpicklingError(f"an unexpected state for {self.name}")


_ADMITTED = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy.core.numeric", "_frombuffer"),
    ("numpy._core.numeric", "_frombuffer"),
    ("_codecs", "encode"),
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str, /) -> object:
        if (module_name, global_name) not in _ADMITTED:
            name = f"{module_name}.{global_name}"[:80]
            raise pickle.UnpicklingError(f"it names {name!r}, which is refused")
        return _Symbol(global_name)


def _scan(raw: bytes) -> None:
    """Refuse opcodes that no data file needs before any of them is carried out."""
    nesting = 0
    for opcode, argument, _ in pickletools.genops(raw):
        name = opcode.name
        if name not in _OPCODES:
            raise pickle.UnpicklingError(f"it uses the opcode {name}, which is refused")
        # The memo is a dense table: one large index would allocate gigabytes.
        if name == "LONG_BINPUT" and isinstance(argument, int) and argument > len(raw):
            raise pickle.UnpicklingError("a memo index beyond the length of the file")
        if name in _NESTING:
            nesting += 1
            if nesting > _MAX_NESTING:
                raise pickle.UnpicklingError("more containers than a data file needs")


def load_plain_dict(raw: bytes, source: str) -> dict[str, object]:
    """Read a pickled dictionary of numbers, strings, lists and uint8 arrays.

    Args:
        raw: the whole pickle, any protocol from 2, written by Python 2 or 3.
        source: what to call it in an error message, such as its path.

    Returns:
        The dictionary, its keys as ``str``, arrays directly under a key decoded to NumPy uint8.

    Raises:
        DataError: the pickle is damaged, is no dictionary, or names anything else.
    """
    try:
        _scan(raw)
        content = _Unpickler(io.BytesIO(raw), encoding="bytes").load()
        if not isinstance(content, dict):
            raise pickle.UnpicklingError(f"it holds a {type(content).__name__}")
        return {
            _text(key): value.decode() if isinstance(value, _Array) else value
            for key, value in content.items()
        }
    except Exception as error:  # a damaged pickle can raise nearly anything, from any opcode
        raise DataError(
            f"{source}: expected an unmodified pickle of the CIFAR-10 python version (a dictionary "
            f"with uint8 data), but it cannot be read: {error}. Download the file again."
        ) from error


def _text(key: object) -> str:
    if isinstance(key, bytes):
        return key.decode("latin1")
    if isinstance(key, str):
        return key
    raise pickle.UnpicklingError(f"a key of type {type(key).__name__}")
