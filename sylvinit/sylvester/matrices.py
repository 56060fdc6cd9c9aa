"""What a caller passes: checks of shapes, dtypes and values; the same values for LAPACK."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sylvinit.errors import BackendError, MatrixError, OptionTypeError

# Supported dtypes and the real ones that go with them.
REAL = {
    torch.float32: torch.float32,
    torch.float64: torch.float64,
    torch.complex64: torch.float32,
    torch.complex128: torch.float64,
}
STRUCTURES = ("auto", "gen", "sym", "pos")
# Matrices declared Hermitian may differ from their adjoints by this many eps times size times the
# largest entry: X X^T computed with products in another order differs by up to about 2.
_ASYMMETRY = 10.0


def widen(x: Tensor) -> Tensor:
    """The same values, float64 or complex128, contiguous, detached."""
    dtype = torch.complex128 if x.dtype.is_complex else torch.float64
    return x.detach().to(dtype).resolve_conj().resolve_neg().contiguous()


def adjoint_of(x: Tensor) -> Tensor:
    """The matrices x^H with the conjugation and the order carried out in memory.

    Inside operators torch may have lazy conjugation switched off, and then sums ignore it.
    """
    return x.mT.conj_physical().contiguous()


def check_matrix(name: str, x: object) -> Tensor:
    """A dense floating tensor of at least two dimensions."""
    if not isinstance(x, Tensor):
        raise OptionTypeError(
            f"{name} must be a torch.Tensor, got {type(x).__name__}; convert it with "
            "torch.as_tensor()"
        )
    if x.dtype not in REAL:
        expected = ", ".join(str(dtype).removeprefix("torch.") for dtype in REAL)
        raise OptionTypeError(f"{name} must be {expected}, got {x.dtype}; convert it with .to()")
    if x.layout != torch.strided:
        raise OptionTypeError(f"{name} must be a dense tensor, got layout {x.layout}")
    if x.ndim < 2:
        raise MatrixError(
            f"{name} must have at least 2 dimensions (..., rows, columns), got shape "
            f"{tuple(x.shape)}; write a vector v as the column v[:, None]"
        )
    return x


def check_square(name: str, x: object) -> Tensor:
    """A batch of square matrices."""
    x = check_matrix(name, x)
    if x.shape[-1] != x.shape[-2]:
        raise MatrixError(f"{name} must be square, got shape {tuple(x.shape)}")
    return x


def number_like(a: Tensor, name: str, value: object) -> Tensor:
    """A real number as a tensor in the precision of a."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        got = type(value).__name__
        raise OptionTypeError(f"{name} must be a real number or a tensor, got {got}")
    return torch.tensor(float(value), dtype=REAL[a.dtype], device=a.device)


def check_alike(**tensors: Tensor) -> None:
    """Same dtype and device, one that has float64."""
    (first, a), *others = tensors.items()
    if a.device.type == "mps":
        raise BackendError("the solver works in float64, which mps devices lack; move to the CPU")
    for name, x in others:
        if x.dtype != a.dtype:
            raise OptionTypeError(
                f"{first} and {name} must have one dtype, got {a.dtype} and {x.dtype}; convert "
                "with .to()"
            )
        if x.device != a.device:
            raise MatrixError(
                f"{first} and {name} must be on one device, got {a.device} and {x.device}; move "
                "with .to()"
            )


def promote(**tensors: Tensor) -> tuple[Tensor, ...]:
    """The same, checked as by :func:`check_alike`; real ones beside complex ones become complex."""
    dtype = next((x.dtype for x in tensors.values() if x.dtype.is_complex), None)
    alike = {
        name: x if dtype is None or x.dtype != REAL[dtype] else x.to(dtype)
        for name, x in tensors.items()
    }
    check_alike(**alike)
    return tuple(alike.values())


def check_right_side(
    q: object, k: int, d: int, batch: Sequence[int], name: str = "q"
) -> torch.Size:
    """Require (..., k, d) and return what it broadcasts to with the batch shape of a and b."""
    q = check_matrix(name, q)
    if q.shape[-2:] != (k, d):
        raise MatrixError(
            f"{name} must have shape (..., {k}, {d}), as many rows as a and columns as b, got "
            f"{tuple(q.shape)}"
        )
    return broadcast(**{"a and b": batch, name: q.shape[:-2]})


def broadcast(**shapes: Sequence[int]) -> torch.Size:
    """The common batch shape."""
    try:
        return torch.broadcast_shapes(*shapes.values())
    except RuntimeError as error:
        texts = " and ".join(f"{tuple(shape)} of {name}" for name, shape in shapes.items())
        raise MatrixError(f"batch dimensions do not broadcast: {texts}") from error


def check_finite(name: str, size: float) -> None:
    """The largest modulus of an entry is finite."""
    if not size < float("inf"):
        raise MatrixError(f"{name} must be finite, but contains NaN or Inf")


def check_hermitian(name: str, structure: str, n: int, size: float, gap: float, eps: float) -> None:
    """The largest |a_ij - conj(a_ji)| is rounding beside the largest |a_ij| of n x n entries."""
    if gap > _ASYMMETRY * n * eps * size:
        raise MatrixError(
            f"{name} must be Hermitian (symmetric if real) with assume_a={structure!r}, but "
            f"differs from its adjoint by up to {gap:.2g} (largest entry {size:.2g}); use "
            f"assume_a='gen', or pass ({name} + {name}.mH) / 2 if only rounding made it so"
        )
