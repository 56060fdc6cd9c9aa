"""Moments of the patches that a convolution reads, for anyone's activation."""

from __future__ import annotations

from math import prod
from numbers import Integral

from torch import Tensor

from sylvinit.backends import choose
from sylvinit.checks import check_choice, check_count, check_seed
from sylvinit.errors import DataError, OptionError
from sylvinit.model.geometry import PADDING_MODES, PatchGeometry
from sylvinit.moments.fused import ARITHMETICS
from sylvinit.moments.label_sums import check_classes
from sylvinit.moments.patch_source import PatchSource, add_patches
from sylvinit.moments.rows import Rows
from sylvinit.moments.sampling import stream_key
from sylvinit.moments.streaming import PatchMoments, product_precision


def patch_moments(
    x: Tensor,
    kernel_size: int | tuple[int, ...],
    *,
    stride: int | tuple[int, ...] = 1,
    padding: int | tuple[int, ...] = 0,
    dilation: int | tuple[int, ...] = 1,
    padding_mode: str = "zeros",
    groups: int = 1,
    patches: int | str = "all",
    labels: Tensor | None = None,
    classes: int | None = None,
    reservoir: int = 0,
    seed: int = 0,
    name: str = "",
    start: int = 0,
    backend: str = "auto",
    arithmetic: str = "3xtf32",
) -> PatchMoments:
    """Moments of the patches that a convolution reads from an activation.

    Args:
        x: floating tensor (samples, channels, *spatial) with one to three spatial axes.
        kernel_size, stride, padding, dilation: as in ``torch.nn.Conv2d``; numbers or one per axis.
        padding_mode: "zeros", "reflect", "replicate" or "circular".
        groups: channel groups; every group has moments of its own.
        patches: random patches per sample, or "all". For stride 1 "all" costs less than half of
            unfolding and forms no patches.
        labels: int64 (samples,), to keep class sums.
        classes: how many there are, for moments that are to be merged; by default the largest label
            plus one.
        reservoir: rows to keep as a random sample.
        seed, name, start: seed, layer name and first sample's index, for the random positions.
        backend: "auto", "cpu", "torch" or "cuda".
        arithmetic: of the products of float32 on the backend "cuda": "3xtf32" (as accurate as
            float32, on tensor cores), "tf32" (factors rounded to 11 bits) or "ffma" (float32).

    Returns:
        :class:`PatchMoments` with d_in = channels / groups * taps, features ordered as in a weight.

    Raises:
        DataError: ``x`` has the wrong number of axes or dtype, no samples, or is too small.
        LabelError: labels are not int64, not one per sample, or out of range.
        OptionError, OptionTypeError: a setting is out of its domain or of the wrong type.
        BackendError: the backend cannot run here, or not on the device of ``x``.
    """
    dims = x.ndim - 2
    if dims not in (1, 2, 3) or not x.is_floating_point():
        raise DataError(
            "x must be floating point of shape (samples, channels, *spatial) with one to three "
            f"spatial axes, got {x.dtype} {tuple(x.shape)}"
        )
    check_choice("padding_mode", padding_mode, PADDING_MODES)
    check_choice("arithmetic", arithmetic, ARITHMETICS)
    groups, seed = check_count("groups", groups), check_seed(seed)
    if x.shape[1] % groups:
        raise OptionError(f"groups must divide the {x.shape[1]} channels of x, got {groups}")
    count = None if patches == "all" else check_count("patches", patches, "or 'all'")
    pads = _per_axis("padding", padding, dims, 0)
    geometry = PatchGeometry(
        kernel=_per_axis("kernel_size", kernel_size, dims, 1),
        stride=_per_axis("stride", stride, dims, 1),
        dilation=_per_axis("dilation", dilation, dims, 1),
        pad_before=pads,
        pad_after=pads,
        padding_mode=padding_mode,
    )
    _check_padding(geometry, tuple(x.shape[2:]))
    out_size = geometry.output_size(tuple(x.shape[2:]))
    if x.shape[0] == 0:
        raise DataError("x holds no samples: at least one is needed")
    if min(out_size) < 1:
        raise DataError(
            f"x of spatial size {tuple(x.shape[2:])} is smaller than the kernel's reach, with its "
            "dilation; use larger inputs, a smaller kernel or more padding"
        )
    labels = None if labels is None else labels.to(x.device)
    rows = Rows.one_each(x.shape[0], prod(out_size))
    key = stream_key(seed, name, 0)
    source = PatchSource(x, geometry, groups, out_size, rows, labels, key, start, count)
    moments = PatchMoments(
        source.features,
        groups=groups,
        classes=0 if labels is None else check_classes(labels, x.shape[0], classes),
        reservoir=reservoir,
        precision=product_precision(x.dtype, source.features * groups),
    )
    add_patches(moments, source, arithmetic if choose(backend, x.device).name == "cuda" else None)
    return moments.transposed(geometry.taps)


def _per_axis(name: str, value: int | tuple[int, ...], dims: int, least: int) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,) * dims
    whole = all(isinstance(v, Integral) and not isinstance(v, bool) for v in values)
    if len(values) != dims or not whole or min(values) < least:
        raise OptionError(
            f"{name} must be an integer or {dims} integers, at least {least}; got {value!r}"
        )
    return tuple(int(v) for v in values)


def _check_padding(geometry: PatchGeometry, in_size: tuple[int, ...]) -> None:
    """Reflected and circular padding read every pixel at most once more, as in torch."""
    slack = {"reflect": 1, "circular": 0}.get(geometry.padding_mode)
    pads = geometry.pad_before
    if slack is not None and any(p > n - slack for p, n in zip(pads, in_size, strict=True)):
        raise DataError(
            f"x of spatial size {in_size} is too small for {geometry.padding_mode!r} padding by "
            f"{pads}"
        )
