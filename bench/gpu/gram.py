"""Step "gram": patch_gram beside gather + cuBLAS (float32, and two TF32 halves), F.unfold + matmul,
the product alone, and the floor.

First every layer in float32 with the default arithmetic and its rivals, a million patches and more,
and labels; then each arithmetic with each tile (how the plan should choose), then bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from gpu import gram_calls, gram_cases
from gpu.ceilings import tf32_products
from gpu.context import Context
from gpu.floor import floor_seconds, gram_work
from gpu.gram_cases import Inputs
from gpu.timing import Clock
from sylvinit.moments import fused
from sylvinit.moments.fused_layout import PatchLayout

TILES = (32, 64, 128)
RIVALS: dict[str, Callable[[Inputs], list[gram_calls.Call]]] = {
    "gather": gram_calls.gathered,
    "halves": gram_calls.halves,
    "unfold": gram_calls.unfolded,
    "product": gram_calls.ready,
}
# Targets: for d of at least 576 and the default arithmetic. Both ways by gather and cuBLAS are of
# float32's accuracy, and the better of them must not be faster.
FROM_D, GATHER, UNFOLD = 576, 1.0, 5.0
DEFAULT = "3xtf32"


def run(context: Context) -> None:
    cases = gram_cases.DRY if context.dry else gram_cases.few(context.quick)
    many = gram_cases.DRY[:1] if context.dry else gram_cases.MANY[: 1 if context.quick else 2]
    both = [(case, last) for case in cases for last in (True, False)]
    with tf32_products(False):
        for case, last in context.cases(both):
            with context.attempt(f"{case}, float32"):
                _beside_rivals(context, Inputs(case, torch.float32, last, context.device))
        for case in context.cases(many, need=15):
            with context.attempt(str(case)):
                _beside_rivals(context, Inputs(case, torch.float32, True, context.device))
        for case in context.cases(gram_cases.DRY if context.dry else gram_cases.LABELED):
            with context.attempt(f"{case}, labels"):
                _labels(context, Inputs(case, torch.float32, True, context.device))
        for dtype in (torch.float32, torch.bfloat16)[: 1 if context.quick else 2]:
            for case, last in context.cases(both):
                with context.attempt(f"{case}, tiles, {dtype}"):
                    _tiles(context, Inputs(case, dtype, last, context.device))
        if not context.quick:
            for case, last in context.cases(both):
                with context.attempt(f"{case}, bfloat16"):
                    _beside_rivals(context, Inputs(case, torch.bfloat16, last, context.device))
    _workspace_target(context)


def _name(inputs: Inputs) -> dict[str, Any]:
    x = inputs.x(0)
    form = "channels_last" if inputs.tap_major else "NCHW"
    case = inputs.case
    return {"case": str(case), "d": case.d, "n": case.n, "dtype": str(x.dtype)[6:], "form": form}


def _beside_rivals(context: Context, inputs: Inputs) -> None:
    clock, case = Clock(context.dry), inputs.case
    row: dict[str, Any] = _name(inputs)
    calls = gram_calls.operator(inputs, DEFAULT)
    timing = clock.time(calls)
    ours = timing.median
    row.update(timing.fields("ours"), spread=timing.spread)
    row["mean_s"] = clock.time(gram_calls.mean(inputs), seconds=0.05).median
    row["ours_bytes"] = clock.peak(calls[0])
    x = inputs.x(0)
    work = gram_work(case.n, case.d, x.numel(), x.itemsize)
    floor = floor_seconds(work, DEFAULT, context.earlier.get("ceilings", {}))
    row.update(floor, multiply_adds=work.multiply_adds, bytes=work.bytes)
    if floor["floor_s"]:
        row["over_floor"] = ours / floor["floor_s"]
    for name, make in RIVALS.items():
        with context.attempt(f"{case}, {name}"):
            rival = make(inputs)
            timing = clock.time(rival)
            row[f"{name}_s"], row[f"{name}_ratio"] = timing.median, timing.median / ours
            row[f"{name}_bytes"] = clock.peak(rival[0])
            del rival
    shown = "case form dtype ours_s over_floor gather_ratio halves_ratio unfold_ratio"
    context.row("beside", shown, **row)
    if case.d >= FROM_D and row["dtype"] == "float32" and case.n < 10**6:
        text = f"patch_gram, {case}, {row['form']}, float32: >= {{:g}} x {{}}"
        bounds = {"gather": GATHER, "halves": GATHER, "unfold": UNFOLD}
        for name, bound in bounds.items():
            if f"{name}_ratio" in row:
                value = row[f"{name}_ratio"]
                context.target(text.format(bound, name), value, least=bound)


def _labels(context: Context, inputs: Inputs) -> None:
    """What the sums by class cost beside the products."""
    clock = Clock(context.dry)
    row = _name(inputs)
    row["without_s"] = clock.time(gram_calls.operator(inputs, DEFAULT)).median
    for classes in (10, 1000):
        seconds = clock.time(gram_calls.operator(inputs, DEFAULT, classes)).median
        row[f"classes_{classes}_s"] = seconds
        row[f"classes_{classes}_ratio"] = seconds / row["without_s"]
    shown = "case without_s classes_10_ratio classes_1000_ratio"
    context.row("labels", shown, **row)


def _tiles(context: Context, inputs: Inputs) -> None:
    """Every arithmetic with every tile, and which one the plan takes."""
    if context.dry:  # there is no CPU implementation of a tile
        timing = Clock(True).time(gram_calls.operator(inputs, DEFAULT))
        context.row("tiles", "case", **_name(inputs), seconds=timing.median)
        return
    clock, case, x = Clock(False), inputs.case, inputs.x(0)
    work = gram_work(case.n, case.d, x.numel(), x.itemsize)
    for arithmetic in fused.ARITHMETICS:
        floor = floor_seconds(work, arithmetic, context.earlier.get("ceilings", {}))["floor_s"]
        chosen = gram_calls.Kernels(inputs, arithmetic, 0).plan.tile
        row: dict[str, Any] = {**_name(inputs), "arithmetic": arithmetic, "floor_s": floor}
        seconds: dict[int, float] = {}
        for tile in TILES:
            if tile == 32 and case.d > 1200:
                continue  # thousands of tiles, each number read for 32 products alone
            kernels = gram_calls.Kernels(inputs, arithmetic, tile)
            timing = clock.replay(kernels.calls(), seconds=0.05)
            seconds[tile] = timing.median
            row[f"tile_{tile}_s"] = timing.median
        best = min(seconds, key=lambda tile: seconds[tile])
        loss = seconds[chosen] / seconds[best] - 1
        row.update(chosen=chosen, best=best, loss=loss)
        context.row("tiles", "case form dtype arithmetic chosen best loss", **row)


def _workspace_target(context: Context) -> None:
    """Peak memory of calls with one and with ten million patches of one length."""
    if context.dry:
        return
    peaks: dict[int, int] = {}
    for n in (10**6, 10**7):
        with context.attempt(f"workspace, n = {n}"):
            x = torch.randn(1, 576, device=context.device).expand(n, 576)
            peaks[n] = Clock(False).peak(lambda x=x: _rows(x))
    if len(peaks) == 2:
        context.put(workspace_bytes=peaks)
        least, most = sorted(peaks.values())
        context.target("patch_gram: workspace independent of n", most / least, most=1.0)


def _rows(x: torch.Tensor) -> None:
    """The Gram matrix of rows."""
    size = x.shape[1] + 1
    gram = torch.zeros(1, size, size, dtype=torch.float64, device=x.device)
    status = torch.zeros(1, dtype=torch.int32, device=x.device)
    nothing = (None, None, 0, None, None, None)
    fused.patch_gram(x, gram, status, *nothing, PatchLayout.of(None, (), 1).numbers(), DEFAULT)
