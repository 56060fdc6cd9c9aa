"""Which runs are missing, and the processes that do them."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any

import torch
from config import Config, Run, cell_identity, cell_label
from data import TooFewImagesError
from runners import check, execute
from store import Results


@dataclass(frozen=True)
class Shard:
    """Every ``count``-th seed of a cell from the ``index``-th on, counted from 1.

    All arms of a seed are in one shard: they are compared with one another, and processors round
    differently. (Arms that were added later ran where they could; records name their environments.)
    """

    index: int = 1
    count: int = 1


@dataclass(frozen=True)
class Settings:
    """How to work.

    Attributes:
        folder: of the results.
        device: "cpu" or "cuda".
        workers: processes; each has one thread on the CPU.
        stack: networks that are trained at once.
        deadline: time.time() after which no run is begun, None for never.
        timed: whether to store the seconds that things took.
    """

    folder: Path
    device: str = "cpu"
    workers: int = 1
    stack: int = 1
    deadline: float | None = None
    timed: bool = True


def planned(
    configs: Sequence[Config], seeds: Sequence[int] | None = None, shard: Shard | None = None
) -> list[Run]:
    """All runs of some configurations: every seed of all of them before the next seed.

    Args:
        configs: in the order in which they share a seed.
        seeds: only these of the planned ones, None for all.
        shard: the part that this machine does.
    """
    every = {
        seed for config in configs for cell in config.cells for seed in config.cell_seeds(cell)
    }
    chosen = sorted(every if seeds is None else every & set(seeds))
    runs = [run for seed in chosen for config in configs for run in config.runs(seed)]
    if shard is None:
        return runs
    paired = {_pair_of(run): None for run in runs}
    mine = set(list(paired)[shard.index - 1 :: shard.count])
    return [run for run in runs if _pair_of(run) in mine]


def _pair_of(run: Run) -> tuple[str, str, int]:
    """What runs that are compared with one another have in common."""
    return run.config.name, str(cell_identity(run.cell)), run.seed


def missing(runs: Iterable[Run], folder: Path) -> list[Run]:
    """Those without a result, in the same order."""
    done: dict[str, set[str]] = {}
    left: list[Run] = []
    for run in runs:
        name = run.config.name
        if name not in done:
            done[name] = set(Results(name, folder).records())
        if run.key not in done[name]:
            left.append(run)
    return left


def grouped(runs: Sequence[Run], stack: int) -> list[list[Run]]:
    """Runs that are done at once: up to ``stack`` of one configuration, cell and recipe."""
    groups: list[list[Run]] = []
    open_groups: dict[str, list[Run]] = {}
    for run in runs:
        place = f"{run.config.name} {cell_identity(run.cell)} {run.training}"
        group = open_groups.get(place)
        if run.config.runner != "train" or group is None or len(group) >= stack:
            group = open_groups[place] = []
            groups.append(group)
        group.append(run)
    return groups


def check_all(runs: Iterable[Run]) -> list[Run]:
    """Raise what is missing or wrong before hours of work, once for each kind of run.

    Returns:
        The runs without those of cells for which a class has too few images on this machine; a
        message on standard output names these cells.
    """
    seen: set[tuple[str, ...]] = set()
    small: set[tuple[str, str]] = set()
    left: list[Run] = []
    for run in runs:
        cell = run.config.name, cell_label(run.cell)
        place = *cell, str(run.cell), run.arm.initialiser, str(run.training)
        if cell not in small and place not in seen:
            seen.add(place)
            try:
                check(run)
            except TooFewImagesError as error:
                small.add(cell)
                print(f"{cell[0]}, {cell[1]}: left out, {error}", flush=True)
        if cell not in small:
            left.append(run)
    return left


def work(runs: Sequence[Run], settings: Settings) -> int:
    """Do the runs, store each result as soon as it is there, and report them on standard output.

    Returns:
        How many runs failed; their tracebacks are on standard error.
    """
    groups = grouped(runs, settings.stack)
    context = multiprocessing.get_context("spawn")
    counter: Synchronized[int] = context.Value("q", 0)
    failures: Synchronized[int] = context.Value("q", 0)
    if settings.workers == 1:
        _worker(groups, counter, failures, settings)
        return failures.value
    # Read by the libraries of the new processes when they are loaded.
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"
    processes = [
        context.Process(target=_worker, args=(groups, counter, failures, settings))
        for _ in range(min(settings.workers, len(groups)))
    ]
    for process in processes:
        process.start()
    try:
        for process in processes:
            process.join()
    except KeyboardInterrupt:
        for process in processes:
            process.terminate()
        raise
    killed = sum(process.exitcode != 0 for process in processes)
    return failures.value + killed


def _worker(
    groups: Sequence[list[Run]],
    counter: Synchronized[int],
    failures: Synchronized[int],
    settings: Settings,
) -> None:
    """Take the next group until there is none, no time, or nobody who waits for it."""
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()
    while settings.deadline is None or time.time() < settings.deadline:
        if parent is not None and not parent.is_alive():
            return
        with counter.get_lock():
            index = counter.value
            counter.value += 1
        if index >= len(groups):
            return
        failed = _attempt(groups[index], settings)
        with failures.get_lock():
            failures.value += failed


def _attempt(group: Sequence[Run], settings: Settings) -> int:
    """Do the runs of a group and store them; how many failed."""
    # Somebody else may have done some since the runs were listed.
    runs = missing(group, settings.folder)
    if not runs:
        return 0
    try:
        records = execute(runs, settings.device)
    except Exception:
        if len(runs) > 1:  # one that fails must not cost the others
            return sum(_attempt([run], settings) for run in runs)
        print(f"failed: {runs[0]}", file=sys.stderr, flush=True)
        traceback.print_exc()
        return 1
    if not settings.timed:
        records = [without_times(record) for record in records]
    Results(runs[0].config.name, settings.folder).append(records)
    for run, record in zip(runs, records, strict=True):
        print(f"{run}: {_line(record)}", flush=True)
    return 0


def without_times(record: dict[str, Any]) -> dict[str, Any]:
    """A record with None for every number of seconds."""
    record = record | {"init_seconds": None, "train_seconds": None}
    if "curve" in record:
        record["curve"] = [[epoch, None, accuracy] for epoch, _, accuracy in record["curve"]]
    return record


def _line(record: dict[str, Any]) -> str:
    parts = [f"{record['accuracy_before']:.2f} % before"]
    if record["accuracy_after"] is not None:
        parts.append(f"{record['accuracy_after']:.2f} % after")
    if record["init_seconds"] is not None:
        parts.append(f"initialised in {record['init_seconds']:.3g} s")
    if record["train_seconds"] is not None:
        parts.append(f"trained in {record['train_seconds']:.0f} s")
    return ", ".join(parts)
