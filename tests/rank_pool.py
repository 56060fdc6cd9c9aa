"""Processes that work as the ranks of groups, for tests: real ones, on gloo."""

from __future__ import annotations

import multiprocessing as mp
import os
import signal
import tempfile
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
import torch
from torch import distributed as dist

TIMEOUT = 20.0  # seconds of a group, and of a job in all
PROCESSES = 4

needs_gloo = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="no gloo here"
)


@dataclass
class Outcome:
    """What became of a job on one rank: what it returned, or what it raised."""

    value: Any = None
    error: str = ""  # its type
    message: str = ""
    trace: str = ""


class RankPool:
    """Processes that wait for jobs, each of them a function (group, rank, *arguments) -> value.

    They are started once. Functions have to be importable.
    """

    def __init__(self, processes: int = PROCESSES) -> None:
        self.processes = processes
        self._folder = tempfile.TemporaryDirectory()
        context = mp.get_context("forkserver")  # which imports once and has no threads
        context.set_forkserver_preload(["sylvinit", "transformers.models.bert.modeling_bert"])
        pipes = [context.Pipe() for _ in range(processes)]
        self._pipes = [ours for ours, _ in pipes]
        self.workers = [
            context.Process(
                target=_serve, args=(theirs, rank, processes, self._folder.name), daemon=True
            )
            for rank, (_, theirs) in enumerate(pipes)
        ]
        for worker in self.workers:
            worker.start()

    def run(
        self, ranks: int, job: Callable[..., Any], *arguments: Any, fails: bool = False
    ) -> list[Outcome]:
        """The outcomes of a job on the first ranks, which form a group."""
        for pipe in self._pipes:
            pipe.send((ranks, job, arguments))
        found: list[Outcome] = []
        for rank, pipe in enumerate(self._pipes):
            if pipe.poll(TIMEOUT * 3):
                try:
                    found.append(pipe.recv())
                except EOFError:
                    found.append(Outcome(error="ended"))
            else:
                found.append(Outcome(error="hangs"))
                self.workers[rank].kill()
        if not fails:
            assert not any(x.error for x in found), "\n".join(x.trace or x.error for x in found)
        return found[:ranks]

    def values(self, ranks: int, job: Callable[..., Any], *arguments: Any) -> list[Any]:
        """What a job returns on every rank."""
        return [outcome.value for outcome in self.run(ranks, job, *arguments)]

    def close(self) -> None:
        """End the processes."""
        for pipe in self._pipes:
            pipe.close()
        for worker in self.workers:
            worker.join(2)
            if worker.is_alive():
                worker.kill()
        self._folder.cleanup()


def _serve(pipe: Any, rank: int, processes: int, folder: str) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background of a shell
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    dist.init_process_group(
        "gloo",
        store=dist.FileStore(f"{folder}/store", processes),
        rank=rank,
        world_size=processes,
        timeout=timedelta(seconds=TIMEOUT),
    )
    groups = {n: dist.new_group(list(range(n))) for n in range(1, processes)}
    groups[processes] = dist.group.WORLD
    try:
        while True:
            ranks, job, arguments = pipe.recv()
            outcome = Outcome()
            if rank < ranks:
                try:
                    outcome.value = job(groups[ranks], rank, *arguments)
                except BaseException as error:
                    outcome.error, outcome.message = type(error).__name__, str(error)
                    outcome.trace = traceback.format_exc()
            pipe.send(outcome)
    except EOFError:
        os._exit(0)
