"""Oracles written from the definitions, in plain Python and NumPy, without code of sylvinit."""

from __future__ import annotations

import hashlib
from itertools import product

import numpy as np
import scipy.linalg
import torch
from torch import nn

Array = np.ndarray


def assert_near(found: Array | torch.Tensor, expected: Array, tolerance: float) -> None:
    """No entry is off by more than ``tolerance`` of the largest one (or of 1 if that is larger)."""
    expected = np.asarray(expected)
    size = max(1.0, float(np.abs(expected).max(initial=0)))
    found = found.detach().numpy() if isinstance(found, torch.Tensor) else found
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * size)


# ---------------------------------------------------------------------------------------- sampling

_MASK = 0xFFFFFFFF


def philox4x32_10(counter: tuple[int, ...], key: tuple[int, int]) -> tuple[int, ...]:
    """Philox4x32-10 in Python's integers."""
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & _MASK, (p0 >> 32) ^ c3 ^ k1, p0 & _MASK
        k0, k1 = (k0 + 0x9E3779B9) & _MASK, (k1 + 0xBB67AE85) & _MASK
    return c0, c1, c2, c3


def stream_key(seed: int, name: str, call: int) -> tuple[int, int]:
    """The two halves of the 64-bit BLAKE2b hash of (seed, call, name)."""
    message = b"".join(v.to_bytes(8, "little", signed=True) for v in (seed, call))
    digest = hashlib.blake2b(message + name.encode("utf-8"), digest_size=8).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")


def drawn_positions(
    key: tuple[int, int], sample: int, available: int, patches: int | None
) -> list[int]:
    """Positions among ``available`` ones that are drawn from a sample; ``patches=None`` is all."""
    if patches is None or available <= patches:
        return list(range(available))
    counters = ((sample & _MASK, sample >> 32, draw, 0) for draw in range(patches))
    return [philox4x32_10(counter, key)[0] * available >> 32 for counter in counters]


# ----------------------------------------------------------------------------------------- patches

_NUMPY_MODES = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


def conv_patches(
    x: Array,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
    pads: list[tuple[int, int]],
    mode: str = "zeros",
    groups: int = 1,
) -> Array:
    """Every patch of a convolution, one number at a time.

    Args:
        x: (samples, channels, *spatial).
        pads: (before, after) of every axis.

    Returns:
        (groups, samples, positions, channels / groups * taps), channels first, then taps.
    """
    x = np.pad(x, [(0, 0), (0, 0), *pads], mode=_NUMPY_MODES[mode])
    return _read(x, kernel, stride, dilation, groups, flip=False)


def conv_transpose_patches(
    x: Array,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
    padding: tuple[int, ...],
    output_padding: tuple[int, ...],
    groups: int = 1,
) -> Array:
    """The same for a transposed convolution: zeros between the inputs, stride 1, flipped kernel."""
    lengths = [(size - 1) * s + 1 for size, s in zip(x.shape[2:], stride, strict=True)]
    stuffed = np.zeros((*x.shape[:2], *lengths), dtype=x.dtype)
    stuffed[(slice(None), slice(None), *(slice(None, None, s) for s in stride))] = x
    for axis, (k, d, pad, extra) in enumerate(
        zip(kernel, dilation, padding, output_padding, strict=True), start=2
    ):
        for amount, end in ((d * (k - 1) - pad, False), (d * (k - 1) - pad + extra, True)):
            width = [(0, 0)] * x.ndim
            width[axis] = (0, max(amount, 0)) if end else (max(amount, 0), 0)
            stuffed = np.pad(stuffed, width)
            keep = slice(None, amount) if end else slice(-amount, None)
            if amount < 0:
                stuffed = stuffed[(slice(None),) * axis + (keep,)]
    return _read(stuffed, kernel, (1,) * len(kernel), dilation, groups, flip=True)


def _read(
    x: Array,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int,
    flip: bool,
) -> Array:
    samples, channels = x.shape[:2]
    outputs = [
        (size - d * (k - 1) - 1) // s + 1
        for size, k, s, d in zip(x.shape[2:], kernel, stride, dilation, strict=True)
    ]
    places = list(product(*map(range, outputs)))
    taps = list(product(*map(range, kernel)))
    width = channels // groups
    out = np.zeros((groups, samples, len(places), width * len(taps)), dtype=x.dtype)
    for (p, place), (t, tap) in product(enumerate(places), enumerate(taps)):
        offset = [k - 1 - i for k, i in zip(kernel, tap, strict=True)] if flip else tap
        where = tuple(
            o * s + i * d for o, s, i, d in zip(place, stride, offset, dilation, strict=True)
        )
        for sample, channel in product(range(samples), range(channels)):
            feature = (channel % width) * len(taps) + t
            out[channel // width, sample, p, feature] = x[(sample, channel, *where)]
    return out


def layer_patches(module: nn.Module, x: torch.Tensor) -> Array:
    """What a module multiplies with its weight, (groups, samples, positions, features)."""
    values = x.detach().contiguous().numpy()
    if not hasattr(module, "kernel_size"):
        return values.reshape(1, len(values), -1, values.shape[-1])
    spatial = (module.kernel_size, module.stride, module.dilation)
    if module.transposed:
        padding = (module.padding, module.output_padding)
        return conv_transpose_patches(values, *spatial, *padding, module.groups)
    if module.padding == "same":
        totals = [d * (k - 1) for k, d in zip(module.kernel_size, module.dilation, strict=True)]
        pads = [(total // 2, total - total // 2) for total in totals]
    elif module.padding == "valid":
        pads = [(0, 0)] * len(module.kernel_size)
    else:
        pads = [(p, p) for p in module.padding]
    return conv_patches(values, *spatial, pads, module.padding_mode, module.groups)


def weight_matrix(module: nn.Module) -> Array:
    """The weight as (groups, outputs, features)."""
    weight = module.weight.detach().numpy()
    if type(module).__name__ == "Conv1D":
        return weight.T[None]
    if not getattr(module, "transposed", False):
        groups = getattr(module, "groups", 1)
        return weight.reshape(groups, weight.shape[0] // groups, -1)
    groups, outputs, taps = module.groups, weight.shape[1], weight[0, 0].size
    width = weight.shape[0] // groups
    out = np.zeros((groups, outputs, width * taps))
    for channel, output in product(range(weight.shape[0]), range(outputs)):
        features = slice((channel % width) * taps, (channel % width + 1) * taps)
        out[channel // width, output, features] = weight[channel, output].ravel()
    return out


def chosen_rows(
    patches: Array, name: str, option: int | str, seed: int = 0, call: int = 0
) -> tuple[Array, Array]:
    """The rows that a layer is solved from, as columns, and the sample of each.

    Args:
        patches: (groups, samples, positions, features).
        name: of the layer.
        option: the argument ``patches=``.

    Returns:
        (groups, features, rows) and (rows,).
    """
    key = stream_key(seed, name, call)
    _, samples, available, _ = patches.shape
    limit = None if option == "all" else int(option)
    picked = [(s, p) for s in range(samples) for p in drawn_positions(key, s, available, limit)]
    sample, position = np.array(picked).T
    return patches[:, sample, position].swapaxes(1, 2), sample


# ---------------------------------------------------------------------------------- codes, equation


def fix_signs(rows: Array) -> Array:
    """The entry of largest magnitude of every row made positive."""
    largest = np.abs(rows).argmax(axis=1)
    return rows * np.sign(rows[np.arange(len(rows)), largest])[:, None]


def principal_axes(x: Array, k: int, center: bool = True, scale: float | None = None) -> Array:
    """The leading eigenvectors of the covariance (or second moment) of columns, as rows.

    ``scale`` is the eigenvalue against which others count as zero, by default the largest.
    """
    deviation = x - x.mean(axis=1, keepdims=True) if center else x
    values, vectors = np.linalg.eigh(deviation @ deviation.T / x.shape[1])
    values, vectors = values[::-1], vectors[:, ::-1]
    bound = len(x) * np.finfo(np.float64).eps * (values[0] if scale is None else scale)
    return fix_signs(vectors[:, :k][:, values[:k] > bound].T)


def discriminants(x: Array, labels: Array, k: int) -> Array:
    """Fisher's directions: generalized eigenvectors of (between, total), of unit length, as rows.

    Where the total covariance is singular the problem is posed in its range.
    """
    deviation = x - x.mean(axis=1, keepdims=True)
    classes = np.unique(labels)
    means = np.stack([deviation[:, labels == c].mean(axis=1) for c in classes], axis=1)
    counts = np.array([(labels == c).sum() for c in classes])
    frame = principal_axes(x, len(x)).T
    between = frame.T @ (means * counts) @ means.T @ frame
    total = frame.T @ deviation @ deviation.T @ frame
    _, vectors = scipy.linalg.eigh(between, total)
    rows = (frame @ vectors[:, ::-1]).T[: min(k, len(classes) - 1)]
    return fix_signs(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def unexplained(x: Array, s: Array) -> Array:
    """What a linear regression on the scores ``s`` leaves of the columns."""
    x = x - x.mean(axis=1, keepdims=True)
    s = s - s.mean(axis=1, keepdims=True)
    return x - np.linalg.lstsq(s.T, x.T, rcond=None)[0].T @ s


def scores(code: str, x: Array, labels: Array, k: int) -> Array:
    """S of the codes "pca", "pca-uncentred" and "lda" (filled up with PCA of what LDA leaves)."""
    centered = x - x.mean(axis=1, keepdims=True)
    if code == "pca-uncentred":
        return principal_axes(x, k, center=False) @ x
    if code == "pca":
        return principal_axes(x, k) @ centered
    s = discriminants(x, labels, k) @ centered
    rest = unexplained(x, s)
    largest = np.linalg.eigvalsh(np.cov(x, bias=True).reshape(len(x), -1))[-1]
    return np.concatenate((s, principal_axes(rest, k - len(s), scale=largest) @ rest))


def one_hot(labels: Array, classes: int) -> Array:
    """Codes of labels, (classes, rows)."""
    return (labels[None, :] == np.arange(classes)[:, None]).astype(np.float64)


def equation(s: Array, x: Array, lam: float) -> tuple[Array, Array, Array]:
    """A = S S^T, B = lam X X^T and Q = (1 + lam) S X^T, divided by the number of columns."""
    n = x.shape[1]
    return s @ s.T / n, lam * (x @ x.T) / n, (1 + lam) * (s @ x.T) / n


def relative_defect(a: Array, b: Array, q: Array, w: Array) -> float:
    """|A W + W B - Q| / ((|A| + |B|) |W| + |Q|)."""
    norm = np.linalg.norm
    return float(norm(a @ w + w @ b - q) / ((norm(a) + norm(b)) * norm(w) + norm(q)))


def minimum_norm_solution(a: Array, b: Array, q: Array) -> Array:
    """The least-squares solution of least norm of A W + W B = Q, from the Kronecker system."""
    k, d = q.shape
    system = np.kron(a, np.eye(d)) + np.kron(np.eye(k), b.T)
    return np.linalg.lstsq(system, q.ravel(), rcond=1e-13)[0].reshape(k, d)
