"""Step "ceilings": what this GPU reaches, to hold times against: bandwidth and matrix products."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from gpu.context import Context
from gpu.timing import Clock

KINDS = {  # name of the result: dtype of the factors, whether TF32 is allowed
    "float32": (torch.float32, False),
    "tf32": (torch.float32, True),
    "float64": (torch.float64, False),
    "bf16": (torch.bfloat16, False),
}


@contextmanager
def tf32_products(allowed: bool) -> Iterator[None]:
    """Whether cuBLAS may round float32 factors to TF32."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def run(context: Context) -> None:
    clock = Clock(context.dry)
    seconds = 0.2 if context.quick else 0.5
    with context.attempt("copy"):
        count = 2**10 if context.dry else 2**30
        source = random(count, context.device)
        target = torch.empty_like(source)
        timing = clock.time([lambda: target.copy_(source)], seconds=seconds)
        moved = 2 * source.nbytes  # read and written
        context.put(copy_bytes_per_s=moved / timing.median, copy_bytes=moved)
        context.say(f"copy {moved / timing.median / 1e12:.2f} TB/s")
    for name, (dtype, allowed) in KINDS.items():
        with context.attempt(f"{name} product"), tf32_products(allowed):
            n = 32 if context.dry else 8192
            a, b = (random(n * n, context.device).view(n, n).to(dtype) for _ in range(2))
            out = torch.empty_like(a)
            product = [lambda a=a, b=b, out=out: torch.matmul(a, b, out=out)]
            timing = clock.time(product, seconds=seconds)
            flops = 2 * n**3 / timing.median
            context.put(**{f"{name}_flops": flops})
            context.say(f"{name} {flops / 1e12:.1f} TFLOP/s")
    context.put(product_size=n)


def random(count: int, device: str) -> Tensor:
    """Normal numbers: zeros take less power and run faster."""
    generator = torch.Generator(device).manual_seed(0)
    return torch.randn(count, generator=generator, device=device)
