"""The split of a float32 into two TF32 numbers, against exact arithmetic."""

from __future__ import annotations

import math
import struct
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

LARGEST = 2.0**128 - 2.0**116  # from here on a number counts as infinite


def number(bits: int) -> float:
    return struct.unpack("<f", struct.pack("<I", bits))[0]


def bits_of(x: float) -> int:
    return struct.unpack("<I", struct.pack("<f", x))[0]


def cut(bits: int) -> float:
    """As the tensor cores read it."""
    return number(bits & 0xFFFFE000)


floats = st.floats(width=32, allow_nan=False, allow_infinity=False)
normal = floats.filter(lambda x: 2.0**-100 < abs(x) < LARGEST)


@given(x=floats.filter(lambda x: abs(x) < LARGEST))
def test_the_parts_add_up(shim: Any, x: float) -> None:
    """Subnormal numbers and both zeros included; high is the nearest of its grid."""
    high, low = shim.split_tf32(bits_of(x))
    assert high & 0x1FFF == 0
    assert Fraction(number(high)) + Fraction(number(low)) == Fraction(x)
    assert math.copysign(1, number(high)) == math.copysign(1, x)
    steps = (0x2000, -0x2000) if high & 0x7FFFFFFF else (0x2000,)
    neighbors = (number(high + step) for step in steps)
    distance = abs(Fraction(x) - Fraction(number(high)))
    for other in neighbors:
        if math.isfinite(other):
            assert distance <= abs(Fraction(x) - Fraction(other))
    # A mirror image: nothing depends on the sign.
    mirrored, mirrored_low = shim.split_tf32(bits_of(-x))
    assert mirrored == high ^ 0x80000000
    assert number(mirrored_low) == -number(low)


@given(x=normal, y=normal)
def test_error_of_a_product(shim: Any, x: float, y: float) -> None:
    """2^-23 from the bit that each low part loses, and 2^-22 from low times low: 2^-21."""
    (a, a_low), (b, b_low) = shim.split_tf32(bits_of(x)), shim.split_tf32(bits_of(y))
    a, a_low, b, b_low = (Fraction(cut(part)) for part in (a, a_low, b, b_low))
    product = a * b + a_low * b + a * b_low
    exact = Fraction(x) * Fraction(y)
    assert abs(product - exact) <= Fraction(1, 2**21) * abs(exact)


@pytest.mark.parametrize("bits", [0x7F800000, 0xFF800000, 0x7FC00000, 0x7FFFFFFF, 0xFFFFFFFF])
def test_infinity_and_nan_are_seen(shim: Any, bits: int) -> None:
    """In the low part: its products are NaN, whatever the other factor is."""
    high, low = shim.split_tf32(bits)
    assert math.isnan(number(low))
    assert math.isnan(cut(low))
    if bits & 0x7FFFFF == 0:
        assert high == bits


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_numbers_next_to_the_largest_count_as_infinite(shim: Any, sign: float) -> None:
    high, _ = shim.split_tf32(bits_of(sign * LARGEST))
    assert number(high) == sign * math.inf
    high, low = shim.split_tf32(bits_of(sign * (LARGEST - 2.0**104)))
    assert math.isfinite(number(high))
    assert math.isfinite(number(low))
