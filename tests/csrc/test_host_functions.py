"""The host+device inline functions of csrc/, compiled for the host and called through ctypes."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from compiler import built_once, find_compiler, run
from hypothesis import given
from hypothesis import strategies as st

from sylvinit.model.geometry import PADDING_MODES, axis_index_table
from sylvinit.moments.sampling import philox4x32

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "csrc"

# counter, key and words of philox4x32-10, from the kat_vectors of Random123
KNOWN_ANSWERS = """
00000000 00000000 00000000 00000000   00000000 00000000   6627e8d5 e169c58d bc57ac4c 9b00dbd8
ffffffff ffffffff ffffffff ffffffff   ffffffff ffffffff   408f276d 41c83b0e a20bc7c6 6d5451fd
243f6a88 85a308d3 13198a2e 03707344   a4093822 299f31d0   d16cfe09 94fdcceb 5001e420 24126ea1
"""

uint32 = st.integers(0, 2**32 - 1)


class HostFunctions:
    """NumPy signatures over the compiled library."""

    def __init__(self, path: Path) -> None:
        u32, i64, u64 = ctypes.c_uint32, ctypes.c_int64, ctypes.c_uint64

        def array(dtype: type[np.generic]) -> type:
            return np.ctypeslib.ndpointer(dtype, flags="C_CONTIGUOUS")

        self._library = ctypes.CDLL(str(path))
        for name, argtypes in {
            "philox4x32_10": [array(np.uint32), i64, u32, u32, array(np.uint32)],
            "sample_positions": [array(np.uint64), i64, u32, u32, u32, u64, array(np.uint64)],
            "patch_input_indices": [
                *(i64, i64, i64, i64, ctypes.c_int, ctypes.c_bool, i64, i64),
                array(np.int64),
            ],
        }.items():
            function = getattr(self._library, name)
            function.argtypes, function.restype = argtypes, None

    def philox(self, counters: np.ndarray, key: tuple[int, int]) -> np.ndarray:
        words = np.empty_like(counters)
        self._library.philox4x32_10(counters, len(counters), *key, words)
        return words

    def positions(
        self, samples: np.ndarray, draws: int, key: tuple[int, int], positions: int
    ) -> np.ndarray:
        drawn = np.empty((len(samples), draws), dtype=np.uint64)
        self._library.sample_positions(samples, len(samples), draws, *key, positions, drawn)
        return drawn

    def index_table(
        self,
        in_size: int,
        out_size: int,
        kernel: int,
        stride: int,
        dilation: int,
        pad_before: int,
        padding_mode: str,
        transposed: bool,
    ) -> np.ndarray:
        """The signature of sylvinit.model.geometry.axis_index_table."""
        table = np.empty((out_size, kernel), dtype=np.int64)
        mode = PADDING_MODES.index(padding_mode)
        self._library.patch_input_indices(
            in_size, stride, dilation, pad_before, mode, transposed, out_size, kernel, table
        )
        return table


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> HostFunctions:
    flags = ["-O2", "-std=c++17", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", f"-I{CSRC}"]
    command = [find_compiler(), *flags, str(HERE / "host_entry.cpp"), "-o"]
    name = "host.so"
    return HostFunctions(
        built_once(tmp_path_factory, name, lambda path: run([*command, str(path)]))
    )


@pytest.mark.parametrize("line", KNOWN_ANSWERS.strip().splitlines())
def test_philox_known_answers(host: HostFunctions, line: str) -> None:
    published = np.array([int(hexadecimal, 16) for hexadecimal in line.split()], dtype=np.uint32)
    counter, (key0, key1), words = np.split(published, [4, 6])
    drawn = host.philox(counter[None], (int(key0), int(key1)))
    np.testing.assert_array_equal(drawn[0], words)


@given(key=st.tuples(uint32, uint32), seed=uint32)
def test_philox_equals_python(host: HostFunctions, key: tuple[int, int], seed: int) -> None:
    counters = np.random.default_rng(seed).integers(0, 2**32, (64, 4), dtype=np.uint32)
    np.testing.assert_array_equal(host.philox(counters, key), philox4x32(counters, key))


@given(
    key=st.tuples(uint32, uint32),
    positions=st.one_of(st.integers(1, 64), st.integers(1, 2**32), st.just(2**32)),
    samples=st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=8),
)
def test_sample_position_follows_its_definition(
    host: HostFunctions, key: tuple[int, int], positions: int, samples: list[int]
) -> None:
    draws = 3
    drawn = host.positions(np.array(samples, dtype=np.uint64), draws, key, positions)
    counters = [[s & 0xFFFFFFFF, s >> 32, draw, 0] for s in samples for draw in range(draws)]
    words = philox4x32(np.array(counters, dtype=np.uint32), key)[:, 0]
    # Python's integers do not overflow, unlike a 64-bit product that is too wide.
    expected = [int(w) * positions >> 32 for w in words]
    assert drawn.ravel().tolist() == expected
    assert max(expected) < positions


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[dict, int]:
    """Arguments of axis_index_table for a convolution that torch accepts, and its pad_after."""
    mode = draw(st.sampled_from(PADDING_MODES))
    in_size = draw(st.integers(1, 12))
    # torch reflects at most once and wraps around at most once.
    pad = st.integers(0, {"reflect": in_size - 1, "circular": in_size}.get(mode, 9))
    pad_before, pad_after = draw(pad), draw(pad)
    padded = pad_before + in_size + pad_after
    kernel = draw(st.integers(1, min(5, padded)))
    dilation = draw(st.integers(1, 4 if kernel == 1 else min(4, (padded - 1) // (kernel - 1))))
    stride = draw(st.integers(1, 4))
    arguments = {
        "in_size": in_size,
        "out_size": (padded - dilation * (kernel - 1) - 1) // stride + 1,
        "kernel": kernel,
        "stride": stride,
        "dilation": dilation,
        "pad_before": pad_before,
        "padding_mode": mode,
        "transposed": False,
    }
    return arguments, pad_after


@st.composite
def transposed_convolutions(draw: st.DrawFn) -> tuple[dict, int]:
    """Arguments of axis_index_table for a transposed convolution, and its output_padding."""
    in_size, kernel = draw(st.integers(1, 12)), draw(st.integers(1, 5))
    stride, dilation = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    output_padding = draw(st.integers(0, max(stride, dilation) - 1))
    unpadded = (in_size - 1) * stride + dilation * (kernel - 1) + output_padding + 1
    padding = draw(st.integers(0, (unpadded - 1) // 2))
    arguments = {
        "in_size": in_size,
        "out_size": unpadded - 2 * padding,
        "kernel": kernel,
        "stride": stride,
        "dilation": dilation,
        "pad_before": padding,
        "padding_mode": "zeros",
        "transposed": True,
    }
    return arguments, output_padding


def torch_table(arguments: dict, trailing: int) -> np.ndarray:
    """The table as torch's own convolutions see it.

    Every input holds its coordinate plus one, and output channel k copies what tap k reads, so
    that a structural zero comes out as 0.
    """
    x = torch.arange(1, arguments["in_size"] + 1, dtype=torch.float64).view(1, 1, -1)
    taps = torch.eye(arguments["kernel"], dtype=torch.float64)
    pad, mode = arguments["pad_before"], arguments["padding_mode"]
    spacing = {"stride": arguments["stride"], "dilation": arguments["dilation"]}
    if arguments["transposed"]:
        y = F.conv_transpose1d(x, taps[None], padding=pad, output_padding=trailing, **spacing)
    else:
        padded = F.pad(x, (pad, trailing), mode="constant" if mode == "zeros" else mode)
        y = F.conv1d(padded, taps[:, None], **spacing)
    return y[0].T.round().to(torch.int64).numpy() - 1


@given(geometry=st.one_of(convolutions(), transposed_convolutions()))
def test_index_table_equals_torch(host: HostFunctions, geometry: tuple[dict, int]) -> None:
    arguments, trailing = geometry
    np.testing.assert_array_equal(host.index_table(**arguments), torch_table(arguments, trailing))


@given(geometry=st.one_of(convolutions(), transposed_convolutions()))
def test_index_table_equals_python(host: HostFunctions, geometry: tuple[dict, int]) -> None:
    arguments, _ = geometry
    np.testing.assert_array_equal(host.index_table(**arguments), axis_index_table(**arguments))
