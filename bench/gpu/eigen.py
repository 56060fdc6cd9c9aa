"""Step "eigen": a table of eigendecompositions by size and batch, float64.

torch.linalg.eigh, CuPy's where it is installed, this library's dispatch, and each of cuSOLVER's
routines called directly; and whether the dispatch has taken the fastest. Then what the library
does not do, the largest eigenvalues alone.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gpu.context import Context
from gpu.direct import ROUTINES, Direct, covariances
from gpu.leading import Leading, library, rank_above
from gpu.timing import Clock
from sylvinit.backends import cusolver, extension

# n and batch: what has a target, then layers one by one, then batches of them, then the rest.
FIRST = [(100, 500), (32, 500)]
LAYERS = [27, 64, 144, 147, 256, 288, 512, 576, 1152, 2304]
OTHERS = [100, 32, 16, 128, 2, 4, 33, 1024, 577, 2048, 4608]
BATCHES = [500, 8, 64, 4096]
# Size, and how many of the largest eigenvalues: as many as a layer of 3 x 3 taps has outputs.
LEADING = [(1152, 128), (2304, 256), (576, 64), (4608, 512)]
LONGEST, LONGEST_ALONE = 2.0, 4.0  # seconds that one call may be expected to take
MOST_BYTES = 4 * 2**30  # of the matrices


def cells(quick: bool) -> list[tuple[int, int]]:
    """The table, the most important cells first."""
    if quick:
        return [*FIRST, *((n, 1) for n in LAYERS[::3])]
    table = [*FIRST, *((n, 1) for n in LAYERS)]
    table += [(n, batch) for batch in BATCHES for n in LAYERS]
    table += [(n, batch) for n in OTHERS for batch in [1, *BATCHES]]
    return [(n, batch) for n, batch in dict.fromkeys(table) if 8 * n * n * batch <= MOST_BYTES]


def run(context: Context) -> None:
    table = (
        [(n, batch) for batch in (1, 4) for n in (3, 5)] if context.dry else cells(context.quick)
    )
    seen: dict[str, dict[tuple[int, int], float]] = {}
    few = len(table) if context.dry or context.quick else len(FIRST) + len(LAYERS)
    _table(context, table[:few], seen)
    if extension.available():
        leading = [(5, 2)] if context.dry else LEADING[:2] if context.quick else LEADING
        for n, count in context.cases(leading, need=6):
            with context.attempt(f"the {count} largest, n = {n}"):
                row = _leading(context, n, count)
                context.row("leading", "n count whole largest rank largest_over_whole", **row)
    _table(context, table[few:], seen)


def _table(
    context: Context,
    table: list[tuple[int, int]],
    seen: dict[str, dict[tuple[int, int], float]],
) -> None:
    for n, batch in context.cases(table, need=6):
        with context.attempt(f"n = {n}, batch = {batch}"):
            row = _cell(context, n, batch, seen)
            context.row("table", "n batch torch cupy ours chosen chosen_over_best", **row)
            for rival in ("torch", "cupy"):
                if (n, batch) == FIRST[0] and row.get(rival) and row.get("ours"):
                    text = f"eigh, {batch} x ({n}, {n}): not slower than {rival}"
                    context.target(text, row[rival] / row["ours"], least=1.0)


def _cell(
    context: Context, n: int, batch: int, seen: dict[str, dict[tuple[int, int], float]]
) -> dict[str, Any]:
    """Seconds of every method; None with a reason for those that would take too long."""
    a = covariances(batch, n, context.device)
    row: dict[str, Any] = {"n": n, "batch": batch}
    clock = Clock(context.dry)
    for name, make in _methods(a).items():
        times = seen.setdefault(name, {})
        expected = _expected(times, n, batch)
        if expected > (LONGEST_ALONE if batch == 1 else LONGEST):
            row[name] = None
            row.setdefault("left out", {})[name] = f"{expected:.1f} s expected"
            continue
        with context.attempt(f"{name}, n = {n}, batch = {batch}"):
            call = make()
            timing = clock.time([call], seconds=0.1, least=1, most=20)
            row[name] = times[n, batch] = timing.median
            if isinstance(call, Direct) and (failed := call.failed()):
                row.setdefault("failed", {})[name] = failed
    direct = {name: row[name] for name in ROUTINES if row.get(name)}
    if direct:
        best = min(direct, key=lambda name: direct[name])
        chosen = cusolver.routines_for(n, batch, cusolver.library().xsyev_batched)[0].routine
        row.update(best=best, chosen=chosen)
        if direct.get(chosen):
            row["chosen_over_best"] = direct[chosen] / direct[best]
    return row


def _leading(context: Context, n: int, count: int) -> dict[str, Any]:
    """Seconds of the whole spectrum, of its largest part, and of the rank beside that.

    Half of the covariance's variance is taken away, so that its rank is n // 2.
    """
    values, vectors = torch.linalg.eigh(covariances(1, n, context.device)[0])
    values[: n - n // 2] = 0
    a = vectors * values @ vectors.mT
    a, threshold = (a + a.mT) / 2, n * torch.finfo(torch.float32).eps * float(values[-1])
    leading, whole = Leading(a, count, library()), Direct("xsyevd", a[None])
    clock = Clock(context.dry)
    row: dict[str, Any] = {"n": n, "count": count}
    calls = {"whole": whole, "largest": leading, "rank": lambda: rank_above(a, threshold)}
    for name, call in calls.items():
        row[name] = clock.time([call], seconds=0.1, least=1, most=20).median
    found, components = leading.result()
    row["largest_over_whole"] = (row["largest"] + row["rank"]) / row["whole"]
    row["value_error"] = float((found - values[-count:]).abs().max() / values[-1])
    row["defect"] = float((a @ components - components * found).abs().max() / values[-1])
    row["rank_found"], row["rank_expected"] = rank_above(a, threshold), n // 2
    return row


def _methods(a: Tensor) -> dict[str, Callable[[], Callable[[], Any]]]:
    """Calls, made when they are needed: a routine may have no workspace for a size."""
    methods: dict[str, Callable[[], Callable[[], Any]]] = {
        "torch": lambda: lambda: torch.linalg.eigh(a)
    }
    if a.is_cuda and (cupy := _cupy()) is not None:
        methods["cupy"] = lambda: partial(cupy.linalg.eigh, cupy.asarray(a))
    if extension.available():
        methods["ours"] = lambda: lambda: cusolver.eigh(a)
        for routine in ROUTINES:
            if routine != "xsyev_batched" or cusolver.library().xsyev_batched:
                methods[routine] = lambda routine=routine: Direct(routine, a)
    return methods


def _cupy() -> Any:
    """CuPy, or None."""
    try:
        return importlib.import_module("cupy")
    except Exception:  # it may also be for another CUDA
        return None


def _expected(times: dict[tuple[int, int], float], n: int, batch: int) -> float:
    """Seconds, from the nearest smaller cells: cubic in the size, linear in the batch."""
    same = [(b, t) for (m, b), t in times.items() if m == n and b < batch]
    if same:
        nearest, seconds = max(same)
        return seconds * batch / nearest
    smaller = [(m, t) for (m, b), t in times.items() if b == batch and m < n]
    if smaller:
        nearest, seconds = max(smaller)
        return seconds * (n / nearest) ** 3
    return 0.0
