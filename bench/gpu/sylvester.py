"""Step "sylvester": batches of symmetric equations A X + X B = Q, beside torch and cuSOLVER."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import sylvinit
from gpu.context import Context
from gpu.direct import Direct, covariances
from gpu.timing import Clock
from sylvinit.backends import cusolver, extension

# batch, k, d; the targets are for the first.
TARGET = (500, 100, 100)
SIZES = [TARGET, (500, 32, 32), (64, 64, 64), (1, 64, 576), (1, 128, 1152), (1, 512, 2304)]
# k, d of one general equation: shifted systems on the GPU beside Schur forms on the host.
GENERAL, GENERAL_DRY = [(16, 144), (64, 576), (288, 288), (256, 1152)], [(3, 5)]
SLOWER, EIGENVALUE_PART = 1.0, 1.1


def by_eigh(a: Tensor, b: Tensor, q: Tensor) -> Tensor:
    """What a user would write with torch.linalg.eigh."""
    values_a, u = torch.linalg.eigh(a)
    values_b, v = torch.linalg.eigh(b)
    y = (u.mT @ q @ v) / (values_a[..., :, None] + values_b[..., None, :])
    return u @ y @ v.mT


def run(context: Context) -> None:
    sizes = SIZES[:2] if context.quick else SIZES
    if context.dry:
        sizes = [(3, 4, 4), (1, 3, 5)]
    for size in context.cases(sizes, need=5):
        with context.attempt(str(size)):
            _equations(context, size)
    for size in context.cases(GENERAL_DRY if context.dry else GENERAL, need=8):
        with context.attempt(f"{size}, general"):
            _general(context, size)


def _equations(context: Context, size: tuple[int, int, int]) -> None:
    batch, k, d = size
    clock = Clock(context.dry)
    a, b = covariances(batch, k, context.device), covariances(batch, d, context.device)
    b = b.flip(0).contiguous() if k == d else b
    generator = torch.Generator(context.device).manual_seed(0)
    q = torch.randn(batch, k, d, generator=generator, dtype=torch.float64, device=context.device)
    row: dict[str, Any] = {"batch": batch, "k": k, "d": d}
    options: dict[str, Any] = {"seconds": 0.5, "least": 5, "most": 50}
    row["torch_s"] = clock.time([lambda: by_eigh(a, b, q)], **options).median
    for structure in ("pos", "sym"):
        with context.attempt(f"{size}, {structure}"):
            solve = lambda s=structure: sylvinit.solve_sylvester(a, b, q, assume_a=s)  # noqa: E731
            row[f"{structure}_s"] = clock.time([solve], **options).median
            residual = sylvinit.sylvester_residual(a, b, q, solve())
            row[f"{structure}_residual"] = float(residual.max())
            row[f"{structure}_ratio"] = row["torch_s"] / row[f"{structure}_s"]
            row[f"{structure}_bytes"] = clock.peak(solve)
    if extension.available():
        _eigenvalue_part(context, row, clock, a, b, options)
    context.row("equations", "batch k d pos_s pos_ratio sym_ratio eigenvalue_part", **row)
    if size == TARGET:
        _targets(context, row)


def _general(context: Context, size: tuple[int, int]) -> None:
    k, d = size
    clock = Clock(context.dry)
    generator = torch.Generator(context.device).manual_seed(0)
    a, b, q = (
        torch.randn(m, n, generator=generator, dtype=torch.float64, device=context.device)
        for m, n in ((k, k), (d, d), (k, d))
    )
    a += 2 * d**0.5 * torch.eye(k, dtype=torch.float64, device=context.device)  # spectra apart
    options: dict[str, Any] = {"seconds": 0.5, "least": 1, "most": 20}
    row: dict[str, Any] = {"k": k, "d": d}
    row["ours_s"] = clock.time([lambda: sylvinit.solve_sylvester(a, b, q)], **options).median
    row["residual"] = float(sylvinit.sylvester_residual(a, b, q, sylvinit.solve_sylvester(a, b, q)))
    on_host = [x.cpu() for x in (a, b, q)]
    host = Clock(dry=True)
    row["host_s"] = host.time([lambda: sylvinit.solve_sylvester(*on_host)]).median
    row["ratio"] = row["host_s"] / row["ours_s"]
    context.row("general", "k d ours_s host_s ratio residual", **row)


def _eigenvalue_part(
    context: Context, row: dict[str, Any], clock: Clock, a: Tensor, b: Tensor, options: Any
) -> None:
    """Both decompositions by this library, and by XsyevBatched called once or twice."""
    with context.attempt(f"{row['batch']} x ({row['k']}, {row['d']}), eigenvalue part"):
        row["eigh_pair_s"] = clock.time([lambda: cusolver.eigh_pair(a, b)], **options).median
        same = a.shape == b.shape
        batches = [torch.cat((a, b))] if same else [a, b]
        calls = [Direct("xsyev_batched", x) for x in batches]

        def both() -> None:
            for call in calls:
                call()

        row["direct_s"] = clock.time([both], **options).median
        row["eigenvalue_part"] = row["eigh_pair_s"] / row["direct_s"]


def _targets(context: Context, row: dict[str, Any]) -> None:
    name = "{} x ({}, {})".format(*TARGET)
    for structure in ("pos", "sym"):
        if f"{structure}_ratio" in row:
            text = f"solve_sylvester, {name}, {structure}: not slower than torch.linalg.eigh"
            context.target(text, row[f"{structure}_ratio"], least=SLOWER)
    if "eigenvalue_part" in row:
        text = f"solve_sylvester, {name}: eigenvalue part within 10 % of XsyevBatched"
        context.target(text, row["eigenvalue_part"], most=EIGENVALUE_PART)
