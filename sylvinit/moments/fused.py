"""The operator that adds up the Gram matrix of patches without forming them.

For the patches x of an activation, with z = (x - shift, 1, s) and s the one-hot label, a code, or
nothing, it computes

    G += sum z z^T    (upper triangle, float64)

which is all of X X^T, S X^T, S S^T, the sums and the class sums. On CUDA tensors one kernel of
:mod:`sylvinit._cuda` draws the positions, reads the patches and multiplies them; on the CPU the
same is done step by step in float64, as a reference.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sylvinit.backends import extension
from sylvinit.backends.memory import memory_for
from sylvinit.errors import BackendError, DataError, OptionError
from sylvinit.moments.fused_layout import ELEMENT_TYPES, PatchLayout
from sylvinit.moments.gather import gather_patches
from sylvinit.moments.sampling import choose_positions

# How products of float32 are taken, in the order of csrc/cuda/patch_gram.h. "3xtf32" is as accurate
# as float32 arithmetic, on tensor cores; "tf32" rounds the factors to 11 bits.
ARITHMETICS = ("3xtf32", "tf32", "ffma")

_LABEL_OUT_OF_RANGE, _PATCH_OUT_OF_RANGE = 1, 2


def _module() -> Any:
    why_not = extension.reason()
    if why_not:
        raise BackendError(f"the patch_gram kernels cannot run here: {why_not}")
    return extension.module


@contextlib.contextmanager
def _typed_errors() -> Iterator[None]:
    """Errors of the compiled module as those of this package."""
    try:
        yield
    except ValueError as error:
        raise OptionError(f"{error}; see the limits in csrc/cuda/patch_gram.h") from error
    except RuntimeError as error:
        raise BackendError(f"{error}; backend='torch' computes the same without it") from error


def unit_roundoff(arithmetic: str | None, dtype: torch.dtype = torch.float32) -> float:
    """Relative rounding of a product: of the operator's, or (None) of torch's in that dtype."""
    return 2.0**-11 if arithmetic == "tf32" else torch.finfo(dtype).eps


def columns(x: Tensor, layout: PatchLayout, classes: int, code: Tensor | None) -> int:
    """D, the length of z."""
    return layout.features(x) + 1 + classes + (0 if code is None else code.shape[1])


@torch.library.custom_op("sylvinit::patch_gram", mutates_args=("gram", "status"))
def patch_gram(
    x: Tensor,
    gram: Tensor,
    status: Tensor,
    shift: Tensor | None,
    labels: Tensor | None,
    classes: int,
    code: Tensor | None,
    entry: Tensor | None,
    position: Tensor | None,
    layout: Sequence[int],
    arithmetic: str,
) -> None:
    """Add the products of the patches of an activation to a Gram matrix.

    Args:
        x: float32 or a half, (entries, channels, *spatial) or (rows, features), any strides.
        gram: float64 (groups, D, D), contiguous; the upper triangle is added to. Columns are the
            features of a patch, the constant, the classes and the code. With ``layout.rows`` only
            those rows, (groups, rows, D).
        status: int32 (1,); bit 0 is set if a label is out of range, bit 1 if a listed patch is.
        shift: float32 (groups, d), or None for zero.
        labels: int64, one per sample (or per listed patch), or None.
        classes: 0 without labels.
        code: float32 (n, codes), a row for each patch, or None.
        entry, position: int64 (n,), the patches; or None, then ``layout`` gives the rule.
        layout: :meth:`PatchLayout.numbers`.
        arithmetic: one of :data:`ARITHMETICS`; the CPU always computes in float64.

    Raises:
        DataError: a tensor has the wrong shape, dtype, strides or device.
        OptionError: the arithmetic is unknown, or the layout is beyond the limits of the kernels.
        BackendError: the extension cannot run here, or a kernel could not be launched.
        DeviceMemoryError: there is no memory for the workspace.
    """
    where = _check(
        x, gram, status, shift, labels, classes, code, entry, position, layout, arithmetic
    )
    rows = _reference_rows(x, where, entry, position)
    if rows is None:
        status.bitwise_or_(_PATCH_OUT_OF_RANGE)
        return
    patches, owner = rows
    z = [patches if shift is None else patches - shift.double()[:, None, :]]
    z.append(patches.new_ones((where.groups, patches.shape[1], 1)))
    if labels is not None:
        of_row = labels[owner]
        one_hot = (of_row[:, None] == torch.arange(classes)).double()
        z.append(one_hot.expand(where.groups, -1, -1))
        if bool(((of_row < 0) | (of_row >= classes)).any()):
            status.bitwise_or_(_LABEL_OUT_OF_RANGE)
    if code is not None:
        z.append(code.double().expand(where.groups, -1, -1))
    whole = torch.cat(z, dim=2)
    first = where.first_row
    left = whole[:, :, first : first + gram.shape[1]]
    gram += (left.mT @ whole).triu(first)


@patch_gram.register_fake
def _(*arguments: Any) -> None:
    _check(*arguments)


@patch_gram.register_kernel("cuda")
def _(x: Tensor, *arguments: Any) -> None:
    where = _check(x, *arguments)
    *tensors, _, arithmetic = arguments
    with torch.cuda.device(x.device):
        stream = torch.cuda.current_stream(x.device).cuda_stream
        count = torch.cuda.get_device_properties(x.device).multi_processor_count
        options = {"multiprocessors": count, "stream": stream}
        launch_gram(_module(), x, *tensors, layout=where, arithmetic=arithmetic, **options)


def launch_gram(
    module: Any,
    x: Tensor,
    gram: Tensor,
    status: Tensor,
    shift: Tensor | None,
    labels: Tensor | None,
    classes: int,
    code: Tensor | None,
    entry: Tensor | None,
    position: Tensor | None,
    layout: PatchLayout,
    arithmetic: str,
    *,
    multiprocessors: int,
    stream: int,
    tile: int = 0,
) -> None:
    """:func:`patch_gram` by the kernels of a compiled module, arguments checked."""
    args = layout.arguments(module, x, entry, position)
    args.status = status.data_ptr()
    if shift is not None:
        args.shift = shift.data_ptr()
    by_class = None
    if labels is not None:
        by_class = _by_class(labels, classes)
        args.labels, args.classes = labels.data_ptr(), classes
        args.order, args.starts = (part.data_ptr() for part in by_class)
    if code is not None:
        args.code, args.codes, args.code_stride = code.data_ptr(), code.shape[1], code.stride(0)
    number = ARITHMETICS.index(arithmetic)
    with _typed_errors():
        plan = module.plan_patch_gram(args, number, multiprocessors, tile)
    with memory_for(f"the tiles of a Gram matrix of {gram.shape[-1]} columns", plan.workspace):
        workspace = torch.empty(plan.workspace // 8, dtype=torch.float64, device=x.device)
    with _typed_errors():
        module.patch_gram(args, plan, number, gram.data_ptr(), workspace.data_ptr(), stream)


def _by_class(labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Indices of labels, those of a class together; and where each class begins, and the last ends.

    Nothing waits for the device. Labels out of range are outside of all classes.
    """
    ordered, order = labels.sort(stable=True)
    limits = torch.arange(classes + 1, device=labels.device)
    return order, torch.searchsorted(ordered, limits)


@torch.library.custom_op("sylvinit::patch_mean", mutates_args=())
def patch_mean(
    x: Tensor,
    layout: Sequence[int],
    count: int,
    entry: Tensor | None = None,
    position: Tensor | None = None,
) -> Tensor:
    """Mean of the first ``count`` patches, float32 (groups, d): a shift for the products.

    Arguments are those of :func:`patch_gram`; a listed patch that does not exist counts as 0.
    """
    where = PatchLayout.from_numbers(layout)
    rows = _reference_rows(x, where, entry, position)
    if rows is None:
        return x.new_zeros((where.groups, where.features(x))).float()
    return rows[0][:, :count].mean(dim=1).float()


@patch_mean.register_fake
def _(x: Tensor, layout: Sequence[int], count: int, *listed: Tensor | None) -> Tensor:
    where = PatchLayout.from_numbers(layout)
    return x.new_empty((where.groups, where.features(x)), dtype=torch.float32)


@patch_mean.register_kernel("cuda")
def _(x: Tensor, layout: Sequence[int], count: int, *listed: Tensor | None) -> Tensor:
    where = PatchLayout.from_numbers(layout)
    with torch.cuda.device(x.device):
        stream = torch.cuda.current_stream(x.device).cuda_stream
        return launch_mean(_module(), x, where, count, *listed, stream=stream)


def launch_mean(
    module: Any,
    x: Tensor,
    layout: PatchLayout,
    count: int,
    entry: Tensor | None = None,
    position: Tensor | None = None,
    *,
    stream: int,
) -> Tensor:
    """:func:`patch_mean` by the kernel of a compiled module."""
    shape = (layout.groups, layout.features(x))
    mean = torch.empty(shape, dtype=torch.float32, device=x.device)
    args = layout.arguments(module, x, entry, position)
    status = torch.zeros(1, dtype=torch.int32, device=x.device)
    args.status = status.data_ptr()
    with _typed_errors():
        size = module.patch_mean_workspace(args, count)
        workspace = torch.empty(size, dtype=torch.float64, device=x.device)
        module.patch_mean(args, count, mean.data_ptr(), workspace.data_ptr(), stream)
    return mean


def _check(
    x: Tensor,
    gram: Tensor,
    status: Tensor,
    shift: Tensor | None,
    labels: Tensor | None,
    classes: int,
    code: Tensor | None,
    entry: Tensor | None,
    position: Tensor | None,
    numbers: Sequence[int],
    arithmetic: str,
) -> PatchLayout:
    """The layout, if the arguments of patch_gram fit it."""
    layout = PatchLayout.from_numbers(numbers)
    if arithmetic not in ARITHMETICS:
        raise OptionError(f"arithmetic must be one of {ARITHMETICS}, got {arithmetic!r}")
    if str(x.dtype) not in ELEMENT_TYPES or not 2 <= x.ndim <= 5:
        raise DataError(
            "x must be float32, bfloat16 or float16 with two to five axes, got "
            f"{x.dtype} {tuple(x.shape)}; convert it first"
        )
    if x.shape[0] == 0 or x.shape[1] % layout.groups or x.shape[0] % layout.entries_per_sample:
        raise DataError(
            f"x of shape {tuple(x.shape)} does not hold whole samples of "
            f"{layout.entries_per_sample} entries in {layout.groups} groups"
        )
    if (labels is None) != (classes == 0) or (entry is None) != (position is None):
        raise DataError(
            "labels need classes above 0, entry needs position, and the other way round; got only "
            "one of a pair"
        )
    size = columns(x, layout, classes, code)
    if layout.first_row < 0 or layout.rows < 0 or layout.first_row + layout.rows > size:
        raise OptionError(
            f"first_row and rows must lie within the {size} columns of the Gram matrix, got "
            f"{layout.first_row} and {layout.rows}"
        )
    n = layout.patches(x, entry)
    owners = n if entry is not None else x.shape[0] // layout.entries_per_sample
    expected = {
        "gram": (gram, torch.float64, (layout.groups, layout.rows or size, size)),
        "status": (status, torch.int32, (1,)),
        "shift": (shift, torch.float32, (layout.groups, layout.features(x))),
        "labels": (labels, torch.int64, (owners,)),
        "code": (code, torch.float32, (n, 0 if code is None else code.shape[1])),
        "entry": (entry, torch.int64, (n,)),
        "position": (position, torch.int64, (n,)),
    }
    for name, (tensor, dtype, shape) in expected.items():
        if tensor is None:
            continue
        if tensor.dtype != dtype or tuple(tensor.shape) != shape or not tensor.is_contiguous():
            raise DataError(
                f"{name} must be contiguous, {dtype} of shape {shape}; got {tensor.dtype} "
                f"{tuple(tensor.shape)} with strides {tuple(tensor.stride())}"
            )
        if tensor.device != x.device:
            raise DataError(f"{name} is on {tensor.device} but x on {x.device}; move one of them")
    return layout


def _reference_rows(
    x: Tensor, layout: PatchLayout, entry: Tensor | None, position: Tensor | None
) -> tuple[Tensor, Tensor] | None:
    """Patches in float64 (groups, n, d) and the owner of each; None if one does not exist."""
    width = int(np.prod(layout.out_size))
    if entry is None or position is None:
        per_sample = layout.entries_per_sample
        samples = layout.first_sample + np.arange(x.shape[0] // per_sample)
        available = np.full(len(samples), per_sample * width)
        draws = layout.draws or per_sample * width
        row, place, _ = choose_positions(layout.key, samples, available, draws)
        owner = torch.from_numpy(row)
        entry = torch.from_numpy(row * per_sample + place // width)
        position = torch.from_numpy(place % width)
    else:
        owner = torch.arange(len(entry))
        outside = (entry < 0) | (entry >= x.shape[0]) | (position < 0) | (position >= width)
        if bool(outside.any()):
            return None
    spatial = (1,) * (5 - x.ndim) + tuple(x.shape[2:])
    whole = x.double().reshape(*x.shape[:2], *spatial)
    taken = gather_patches(whole, layout.geometry(), entry, position, layout.out_size)
    split = taken.unflatten(2, (layout.groups, -1)).permute(2, 0, 1, 3)
    if not layout.tap_major:
        split = split.transpose(2, 3)
    return split.flatten(2), owner
