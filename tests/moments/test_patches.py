"""Gathered patches and the Gram matrix of all patches against loops and torch's own unfolding."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import (
    assert_near,
    chosen_rows,
    conv_patches,
    conv_transpose_patches,
)
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

import sylvinit
from sylvinit.errors import DataError, LabelError, OptionError
from sylvinit.model.geometry import PADDING_MODES, PatchGeometry
from sylvinit.moments import patch_lines, patch_source
from sylvinit.moments.all_patches import correlation_gram, pad_channels_last, window_sums
from sylvinit.moments.gather import gather_patches
from sylvinit.moments.patch_source import PatchSource
from sylvinit.moments.rows import RowRule, Rows, assign_rows

# Of the largest entry (or of 1): sums of at most 5000 float64 products that come in another order,
# some of which are taken away again. The worst value seen is 9e-15.
CLOSE = 1e-12


@st.composite
def convolutions(draw: st.DrawFn, stride_1: bool = False) -> dict[str, Any]:
    """A small activation and a convolution that fits into it, tiny maps included."""
    dims, mode = draw(st.integers(1, 3)), draw(st.sampled_from(PADDING_MODES))
    size = [draw(st.integers(1, (12, 6, 4)[dims - 1])) for _ in range(dims)]
    pads, kernel, stride, dilation = [], [], [], []
    for length in size:
        most = {"reflect": length - 1, "circular": length}.get(mode, 3)
        pads.append((draw(st.integers(0, min(3, most))), draw(st.integers(0, min(3, most)))))
        padded = length + sum(pads[-1])
        kernel.append(draw(st.integers(1, min((5, 4, 3)[dims - 1], padded))))
        reach = (padded - 1) // (kernel[-1] - 1) if kernel[-1] > 1 else 3
        dilation.append(draw(st.integers(1, min(3, reach))))
        stride.append(1 if stride_1 else draw(st.integers(1, 3)))
    groups = draw(st.integers(1, 3))
    shape = (draw(st.integers(1, 3)), groups * draw(st.integers(1, 2)), *size)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    if draw(st.booleans()):
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)  # channels_last in any dimension
    return {
        "x": x,
        "groups": groups,
        "kernel": tuple(kernel),
        "stride": tuple(stride),
        "dilation": tuple(dilation),
        "pads": pads,
        "mode": mode,
    }


def geometry_of(case: dict[str, Any]) -> PatchGeometry:
    before, after = zip(*case["pads"], strict=True)
    return PatchGeometry(
        *(case[name] for name in ("kernel", "stride", "dilation")), before, after, case["mode"]
    )


def by_loops(case: dict[str, Any]) -> np.ndarray:
    """(groups, samples, positions, features)."""
    order = ("kernel", "stride", "dilation", "pads", "mode", "groups")
    return conv_patches(case["x"].contiguous().numpy(), *(case[name] for name in order))


def canonical_order(channels: int, taps: int) -> Tensor:
    """Turns tap-major features into the order of a weight: channels first, then taps."""
    return torch.arange(taps * channels).view(taps, channels).T.flatten()


def gathered(x: Tensor, geometry: PatchGeometry, groups: int) -> np.ndarray:
    """All patches as the library gathers them, in the layout of the loops."""
    out_size = geometry.output_size(tuple(x.shape[2:]))
    rows = Rows.one_each(len(x), prod(out_size))
    _, entry, position = rows.all_positions()
    found = PatchSource(x, geometry, groups, out_size, rows, None).gather(entry, position)
    found = found[..., canonical_order(x.shape[1] // groups, geometry.taps)]
    return found.reshape(groups, len(x), prod(out_size), -1).numpy()


@given(case=convolutions())
def test_gathered_patches_are_those_of_loops(case: dict[str, Any]) -> None:
    found = gathered(case["x"], geometry_of(case), case["groups"])
    np.testing.assert_array_equal(found, by_loops(case))


@given(
    size=st.tuples(st.integers(1, 8), st.integers(1, 8)),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    dilation=st.tuples(st.integers(1, 3), st.integers(1, 3)),
)
def test_gathered_patches_are_torchs_unfolding(size, kernel, stride, padding, dilation) -> None:
    geometry = PatchGeometry(kernel, stride, dilation, padding, padding)
    assume(min(geometry.output_size(size)) > 0)
    x = torch.randn(2, 3, *size)
    unfolded = F.unfold(x, kernel, dilation, padding, stride)
    found = gathered(x, geometry, 1)[0]
    np.testing.assert_array_equal(found, unfolded.transpose(1, 2).numpy())


@given(data=st.data())
def test_gathered_patches_of_transposed_convolutions(data: st.DataObject) -> None:
    dims = data.draw(st.integers(1, 3))

    def each(low: int, high: int) -> tuple[int, ...]:
        return tuple(data.draw(st.integers(low, high)) for _ in range(dims))

    size, kernel, stride, dilation = each(1, 4), each(1, 3), each(1, 3), each(1, 2)
    padding = each(0, 3)
    extra = tuple(
        data.draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True)
    )
    geometry = PatchGeometry(
        kernel, stride, dilation, padding, padding, transposed=True, output_padding=extra
    )
    assume(min(geometry.output_size(size)) > 0)
    x = torch.randn(2, 4, *size)
    expected = conv_transpose_patches(x.numpy(), kernel, stride, dilation, padding, extra, 2)
    np.testing.assert_array_equal(gathered(x, geometry, 2), expected)


def test_gathering_chosen_positions_leaves_the_input_alone() -> None:
    x = torch.randn(3, 2, 5, 4)
    before = x.clone()
    geometry = PatchGeometry((3, 2), (1, 1), (1, 1), (1, 0), (1, 0))
    entry, position = torch.tensor([2, 0, 2, 1]), torch.tensor([14, 0, 14, 7])
    found = gather_patches(x, geometry, entry, position)
    every = F.unfold(x, (3, 2), padding=(1, 0)).transpose(1, 2)
    expected = every[entry, position].unflatten(1, (2, 6)).transpose(1, 2)
    assert torch.equal(found, expected)
    assert torch.equal(x, before)


# ------------------------------------------------------------------------------ all patches at once


@given(case=convolutions(stride_1=True))
def test_shifted_correlations_are_the_gram_matrix_of_all_patches(case: dict[str, Any]) -> None:
    geometry, x, groups = geometry_of(case), case["x"], case["groups"]
    out_size = geometry.output_size(tuple(x.shape[2:]))
    padded = pad_channels_last(x, geometry)
    found = correlation_gram(padded, geometry, out_size, groups)
    order = canonical_order(x.shape[1] // groups, geometry.taps)
    found = found[:, order][:, :, order].numpy()
    patches = by_loops(case).reshape(groups, -1, found.shape[1])
    assert_near(found, np.einsum("gni,gnj->gij", patches, patches), CLOSE)
    np.testing.assert_array_equal(found, found.swapaxes(1, 2))
    sums = window_sums(padded.sum(dim=0), geometry, out_size).unflatten(1, (groups, -1))
    sums = sums.movedim(1, 0).flatten(1)[:, order]
    assert_near(sums, patches.sum(axis=1), CLOSE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("groups", "channels"), [(1, 3), (1, 5), (1, 6), (2, 10), (1, 16)])
def test_shifted_correlations_are_symmetric_to_the_bit(
    groups: int, channels: int, dtype: torch.dtype
) -> None:
    geometry = PatchGeometry((3, 3), (1, 1), (1, 1), (1, 1), (1, 1))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8, channels, 9, 9, generator=generator, dtype=dtype)
    found = correlation_gram(pad_channels_last(x, geometry), geometry, (9, 9), groups)
    assert torch.equal(found, found.mT)


def explicit(patches: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of columns (groups, d, n)."""
    mean = patches.mean(axis=2)
    deviation = patches - mean[:, :, None]
    return mean, deviation @ deviation.swapaxes(1, 2) / patches.shape[2]


@given(
    case=convolutions(),
    option=st.sampled_from(["all", 1, 4, 50]),
    labeled=st.booleans(),
    route=st.sampled_from([None, True, False]),
)
def test_patch_moments_are_those_of_loops(
    case: dict[str, Any], option: int | str, labeled: bool, route: bool | None
) -> None:
    case["pads"] = [(before, before) for before, _ in case["pads"]]
    out_size = geometry_of(case).output_size(tuple(case["x"].shape[2:]))
    assume(min(out_size) > 0)
    x = case["x"] + 3
    case["x"] = x
    labels = torch.arange(len(x)).remainder(2) if labeled else None
    with pytest.MonkeyPatch.context() as patch:
        if route is not None and set(case["stride"]) == {1}:
            # Both routes, whatever the count of flops says.
            patch.setattr(patch_source, "lines_are_cheaper", lambda *_: route)
            patch.setattr(patch_lines, "_SEGMENT_BYTES", 2000)
        patch.setattr(patch_source, "_UNFOLD_BYTES", 2000)
        moments = sylvinit.patch_moments(
            x,
            case["kernel"],
            stride=case["stride"],
            padding=tuple(before for before, _ in case["pads"]),
            dilation=case["dilation"],
            padding_mode=case["mode"],
            groups=case["groups"],
            patches=option,
            labels=labels,
            seed=9,
            name="conv",
        )
    columns, owner = chosen_rows(by_loops(case), "conv", option, seed=9)
    mean, covariance = explicit(columns)
    assert moments.n == columns.shape[2]
    assert_near(moments.mean(), mean, CLOSE)
    assert_near(moments.covariance(), covariance, CLOSE)
    if labels is not None:
        means = moments.class_means()
        assert means is not None
        for c in range(moments.classes):
            part = columns[:, :, labels.numpy()[owner] == c]
            assert_near(means[:, c], part.mean(axis=2), CLOSE)


@pytest.mark.parametrize("option", ["all", 3])
def test_patch_moments_of_parts_merge(option: Any) -> None:
    x = torch.randn(7, 2, 6, 6, dtype=torch.float64)
    y = torch.tensor([0, 1, 1, 0, 2, 2, 1])
    settings_ = {"padding": 1, "patches": option, "classes": 3, "reservoir": 8, "name": "a"}
    whole = sylvinit.patch_moments(x, 3, labels=y, **settings_)
    first = sylvinit.patch_moments(x[:4], 3, labels=y[:4], **settings_)
    first.merge(sylvinit.patch_moments(x[4:], 3, labels=y[4:], start=4, **settings_))
    for name in ("mean", "covariance", "class_counts", "class_means", "reservoir"):
        assert_near(getattr(first, name)(), getattr(whole, name)().numpy(), CLOSE)


def test_large_mean_keeps_the_covariance_of_all_patches_in_float32() -> None:
    generator = torch.Generator().manual_seed(0)
    x = 1e4 + 0.1 * torch.randn(20, 3, 12, 12, generator=generator)
    moments = sylvinit.patch_moments(x, 3)
    patches = F.unfold(x.double(), 3).transpose(1, 2).reshape(-1, 27).T[None].numpy()
    _, covariance = explicit(patches)
    # 2000 float32 products: sqrt(2000) eps = 5e-6 of the diagonal; the worst value seen is 2e-7.
    error = np.abs(moments.covariance().numpy() - covariance).max()
    assert error < 5e-6 * covariance.max()


def test_half_precision_is_upcast() -> None:
    x = torch.randn(5, 2, 8, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    for option in ("all", 4):
        moments = sylvinit.patch_moments(x, 3, padding=1, patches=option)
        exact = sylvinit.patch_moments(x.double(), 3, padding=1, patches=option)
        # 320 float32 products: sqrt(320) eps = 2e-6; the worst value seen is 6e-7.
        assert_near(moments.covariance(), exact.covariance().numpy(), 2e-6)


# --------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"x": torch.zeros(2, 3)}, DataError, r"one to three.*\(2, 3\)"),
        ({"x": torch.zeros(2, 3, 4, dtype=torch.int64)}, DataError, "int64"),
        ({"x": torch.zeros(0, 2, 5, 5)}, DataError, "no samples"),
        ({"x": torch.zeros(2, 2, 2, 5)}, DataError, r"\(2, 5\) is smaller"),
        ({"kernel_size": (3, 3, 3)}, OptionError, r"kernel_size must be .* 2 integers"),
        ({"kernel_size": 0}, OptionError, "kernel_size .* at least 1; got 0"),
        ({"kernel_size": 2.0}, OptionError, r"kernel_size .* got 2\.0"),
        ({"stride": (1, 0)}, OptionError, "stride"),
        ({"padding": -1}, OptionError, "padding .* at least 0"),
        ({"dilation": "2"}, OptionError, "dilation"),
        ({"dilation": 3}, DataError, "smaller than the kernel's reach"),
        ({"padding_mode": "mirror"}, OptionError, "'zeros', 'reflect'"),
        ({"padding_mode": "reflect", "padding": (5, 0)}, DataError, r"too small for 'reflect'"),
        ({"padding_mode": "circular", "padding": 6, "patches": 2}, DataError, "too small"),
        ({"groups": 3}, OptionError, "groups must divide the 2 channels"),
        ({"groups": 0}, OptionError, "groups"),
        ({"patches": 0}, OptionError, "patches must be an integer of at least 1, or 'all'; got 0"),
        ({"patches": True}, OptionError, "patches"),
        ({"patches": "some"}, OptionError, "patches"),
        ({"seed": 0.5, "patches": 2}, OptionError, "seed"),
        ({"seed": 2**63}, OptionError, "seed"),
        ({"reservoir": -1}, OptionError, "reservoir"),
        ({"labels": torch.tensor([0])}, LabelError, r"\(2,\).*\(1,\)"),
        ({"labels": torch.tensor([0.0, 1.0])}, LabelError, "float32"),
        ({"labels": torch.tensor([0, -1])}, LabelError, "got -1 to 0"),
        ({"labels": torch.tensor([0, 3]), "classes": 3}, LabelError, r"\[0, 3\), got 0 to 3"),
    ],
)
def test_bad_arguments(changes: dict[str, Any], error: type, message: str) -> None:
    arguments = {"x": torch.zeros(2, 2, 5, 5), "kernel_size": 3, **changes}
    with pytest.raises(error, match=message):
        sylvinit.patch_moments(**arguments)


@pytest.mark.parametrize(
    ("shape", "samples", "features", "good"),
    [
        ((6, 4), 6, 1, [1] * 6),
        ((6, 5, 4), 6, 1, [5] * 6),
        ((6, 2, 3, 4), 6, 1, [6] * 6),
        ((30, 4), 6, 1, [5] * 6),  # tokens folded into the batch, batch first
        ((31, 4), 6, 1, None),
        ((6, 3, 8), 6, 2, [1] * 6),  # a convolution
        ((12, 3, 8), 6, 2, [2] * 6),  # windows folded into the batch
    ],
)
def test_rows_of_a_sample(
    shape: tuple[int, ...], samples: int, features: int, good: list[int] | None
) -> None:
    rows = assign_rows("layer", torch.zeros(shape), samples, features=features)
    assert (None if rows is None else rows.counts.tolist()) == good


@pytest.mark.parametrize(
    ("outer", "inner", "owners"),
    [
        (1, 3, [0, 0, 0, 1, 1, 1]),
        (3, 1, [0, 1, 0, 1, 0, 1]),
        (2, 2, [0, 0, 1, 1, 0, 0, 1, 1]),
    ],
)
def test_rows_by_rule(outer: int, inner: int, owners: list[int]) -> None:
    x, rule = torch.zeros(len(owners), 4), RowRule(outer, inner)
    rows = assign_rows("layer", x, 2, features=1, rule=rule)
    assert rows is not None
    sample, entry, _ = rows.all_positions()
    assert [owners[at] for at in entry] == sample.tolist() == sorted(owners)
    # The second of a sample's tokens is padding for the first sample: its second row goes.
    mask = torch.ones(2, outer * inner, dtype=torch.bool)
    mask[0, 1] = False
    rows = assign_rows("layer", x, 2, features=1, rule=rule, mask=mask)
    assert rows is not None
    kept = rows.all_positions()[1].tolist()
    assert sorted({*range(len(owners))} - {*kept}) == [
        [j for j, i in enumerate(owners) if i == 0][1]
    ]
