"""The shortest way through the solver, for the commonest case.

Python between the caller and LAPACK costs as much as LAPACK itself for matrices of size 20, so
contiguous float64 or complex128 tensors on the CPU, without derivatives or broadcasting, take one
call of the compiled module, which checks their values too. Everything else, and everything that is
wrong, goes the long way.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

from sylvinit.sylvester import lapack
from sylvinit.sylvester.outcome import judge

_EPS = {dtype: torch.finfo(dtype).eps for dtype in (torch.float64, torch.complex128)}


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
    k, d = shape[-2:]
    if not (
        lapack.AVAILABLE
        and dtype in _EPS
        and 0 < k <= d <= lapack.LARGEST
        and a.dtype is dtype
        and b.dtype is dtype
        and a.is_cpu
        and b.is_cpu
        and q.is_cpu
        and is_plain(a, b, q)
        and a.is_contiguous()
        and b.is_contiguous()
        and q.is_contiguous()
    ):
        return None
    batch = shape[:-2]
    if a.shape != (*batch, k, k) or b.shape != (*batch, d, d) or 0 in batch:
        return None
    if any(x.is_conj() or x.is_neg() or x.layout is not torch.strided for x in (a, b, q)):
        return None
    eps = _EPS[dtype]
    found = lapack.solve_hermitian_direct(a, b, q, eps, structure == "pos")
    if found is None:
        return None
    x, outcome = found
    judge(outcome, tuple(batch), eps)
    return x
