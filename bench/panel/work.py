"""A run, and the processes that do those that are missing."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import multiprocessing
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

import torch
from experiments.data import MissingDataError
from experiments.store import Results
from torch import nn

from panel import arms
from panel.data import draw, load
from panel.networks import build
from panel.pairs import Pair, Run
from panel.plan import Records
from panel.training import measure, train


def execute(run: Run, records: Records | None = None) -> dict[str, Any]:
    """Do a run.

    Args:
        run: which.
        records: what was done before. The measures of a run that began with the same weights to the
            bit, and is the same but for its arm, are taken from there ("same_as" names its arm).

    Returns:
        Its record: the measure before and after training in points, processor seconds of both
        parts, what the report says, and versions of the packages that the pair needs.
    """
    pair = run.cell.pair
    pools = load(pair.data)
    samples, measured = draw(pools, run.cell.shots, run.seed, run.split, pair.size)
    shape = samples.inputs.shape[1:]
    model = build(pair.network, dict(pair.settings), pools.outputs, shape, run.seed)
    begin = time.process_time()
    report = arms.apply(run.arm, model, samples, run.seed)
    initialized = time.process_time()
    start = _digest(model)
    twin = _twin(run, start, records or {})
    if twin is None:
        before = measure(model, measured)
        middle = time.process_time()
        train(model, samples, run.recipe, run.seed)
        end = time.process_time()
        measures = {
            "before": before,
            "after": measure(model, measured),
            "train_seconds": end - middle,
        }
    else:
        measures = {key: twin[key] for key in ("before", "after", "train_seconds")}
        measures["same_as"] = twin["arm"]
    return run.fields | {
        "samples": len(samples.labels),
        **measures,
        "init_seconds": initialized - begin,
        "seconds": time.process_time() - begin,
        "start": start,
        **report,
        "packages": {name: importlib.metadata.version(name) for name in pair.packages},
    }


def _digest(model: nn.Module) -> str:
    """A hash of all weights and buffers."""
    found = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        found.update(name.encode())
        found.update(tensor.contiguous().numpy().tobytes())
    return found.hexdigest()[:16]


def _twin(run: Run, start: str, records: Records) -> Mapping[str, Any] | None:
    """A record of the same run by another arm that began with the same weights."""
    fields = {key: value for key, value in run.fields.items() if key != "arm"}
    for record in records.values():
        if record.get("start") == start and all(record[key] == fields[key] for key in fields):
            return record
    return None


def lacking(pair: Pair) -> str | None:
    """What a pair lacks on this machine, None if nothing."""
    absent = [name for name in pair.packages if importlib.util.find_spec(name) is None]
    if absent:
        return f"packages {', '.join(absent)}"
    try:
        load(pair.data)
    except MissingDataError as error:
        return str(error)
    return None


def work(
    plan: Callable[[Records], Iterable[Run | None]],
    read: Callable[[], Records],
    folder: Path,
    workers: int,
    deadline: float | None,
) -> int:
    """Do what is missing of a plan, and store each result as soon as it is there.

    Args:
        plan: all runs in their order, from the records so far; None for those not known yet.
        read: the records.
        folder: of the results.
        workers: processes of one thread each.
        deadline: time.time() after which no run is begun, None for never.

    Returns:
        How many runs failed; their tracebacks are on standard error.
    """
    # Read by the libraries of the new processes when they are loaded.
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("spawn")
    failed: set[str] = set()
    pending: dict[Future[str], Run] = {}
    with ProcessPoolExecutor(workers, context, _prepare) as pool:
        while True:
            if deadline is None or time.time() < deadline:
                records = read()
                busy = failed | {run.key for run in pending.values()}
                for run in _next(plan(records), records, busy, workers - len(pending)):
                    pending[pool.submit(_store, run, folder)] = run
            if not pending:
                return len(failed)
            for future in wait(pending, return_when=FIRST_COMPLETED).done:
                run = pending.pop(future)
                try:
                    print(future.result(), flush=True)
                except Exception:
                    print(f"failed: {run}", file=sys.stderr, flush=True)
                    traceback.print_exc()
                    failed.add(run.key)


def _next(plan: Iterable[Run | None], records: Records, busy: set[str], count: int) -> list[Run]:
    """The first runs that are neither done nor being done."""
    found: dict[str, Run] = {}
    for run in plan:
        if len(found) == count:
            break
        if run is not None and run.key not in records and run.key not in busy:
            found[run.key] = run
    return list(found.values())


def _store(run: Run, folder: Path) -> str:
    """Do a run in a worker and store it; a line about it."""
    results = Results(run.cell.pair.slug, folder)
    record = execute(run, results.records())
    results.append([record])
    return f"{run}: {record['before']:.1f} -> {record['after']:.1f}, {record['seconds']:.1f} s"


def _prepare() -> None:
    """In a worker: one thread, and an end where nobody waits for the results any more."""
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def remaining(plan: Sequence[Run | None], records: Records) -> tuple[int, int, int]:
    """How many runs are done, missing, and not known yet."""
    keys = {run.key for run in plan if run is not None}
    done = sum(key in records for key in keys)
    return done, len(keys) - done, sum(run is None for run in plan)
