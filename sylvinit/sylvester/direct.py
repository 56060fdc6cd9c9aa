"""The shortest way through the solver, for the commonest case.

Python between the caller and the compiled module costs as much as the solution for matrices of size
10, so contiguous tensors on the CPU, without derivatives or broadcasting, take one call of the
module, which checks their values too. Everything else, and everything that is
wrong, goes the long way.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

from sylvinit.sylvester import lapack, matrices
from sylvinit.sylvester.compute import narrow
from sylvinit.sylvester.outcome import judge

# By the dtype of the caller: its eps, and the dtype of the work.
_WIDE = {
    dtype: (torch.finfo(dtype).eps, torch.complex128 if dtype.is_complex else torch.float64)
    for dtype in matrices.REAL
}


def is_plain(*tensors: Tensor) -> bool:
    """Whether only values are asked for: no derivative, transform, mode or tensor subclass."""
    derivatives = torch.is_grad_enabled()
    for x in tensors:
        if type(x) is not Tensor and type(x) is not Parameter:
            return False
        if x.is_meta or (derivatives and x.requires_grad):
            return False
    return not (
        torch.compiler.is_compiling()
        or forward_ad._current_level >= 0
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._get_tracing_state()
    )


def solve_directly(a: Tensor, b: Tensor, q: Tensor, structure: str) -> Tensor | None:
    """X, or None where the long way has to be taken, for "auto", "sym" or "pos".

    So far a, b and q are only known to be dense floating tensors of two dimensions or more.
    """
    dtype, shape = q.dtype, q.shape
    *batch, k, d = shape
    if not (
        lapack.AVAILABLE
        and 0 < k <= d <= lapack.LARGEST
        and is_plain(a, b, q)
        and a.shape == (*batch, k, k)
        and b.shape == (*batch, d, d)
        and 0 not in batch
    ):
        return None
    for x in (a, b, q):
        if x.dtype is not dtype or not x.is_cpu or not x.is_contiguous():
            return None
        if x.is_neg() or x.is_conj():
            return None
    eps, wide = _WIDE[dtype]
    if wide is not dtype:
        a, b, q = a.to(wide), b.to(wide), q.to(wide)
    found = lapack.solve_hermitian_direct(a, b, q, eps, structure == "pos")
    if found is None:
        return None
    x, outcome = found
    judge(outcome, tuple(batch), eps)
    if wide is dtype:
        return x
    # Entries are looked at one by one only where the largest may not fit.
    return narrow(x, dtype, not lapack.inspect(x)[0] <= torch.finfo(dtype).max)
