"""jax.scipy.linalg.solve_sylvester in a process of its own, so that it can be given up.

With JAX 0.10 on 2 busy cores compiled solves of batches sometimes did not return for minutes.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import time
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from numpy.typing import NDArray

AVAILABLE = importlib.util.find_spec("jax") is not None
# Seconds without an answer after which a contender leaves the race.
PATIENCE = 180.0


def _serve(connection: Connection, method: str, matrices: tuple[NDArray[Any], ...]) -> None:
    """Answer numbers of calls with the solution and the mean time of a call."""
    import jax

    jax.config.update("jax_enable_x64", True)
    arrays = [jax.device_put(x, jax.devices("cpu")[0]) for x in matrices]
    solver = partial(jax.scipy.linalg.solve_sylvester, method=method)
    solve = jax.jit(solver).lower(*arrays).compile()
    while calls := connection.recv():
        begin = time.perf_counter()
        for _ in range(calls):
            x = solve(*arrays).block_until_ready()
        seconds = (time.perf_counter() - begin) / calls
        connection.send((np.asarray(x), seconds))


class JaxProcess:
    """Runs from its creation until close()."""

    def __init__(self, method: str, matrices: tuple[NDArray[Any], ...]) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, other = context.Pipe()
        arguments = (other, method, matrices)
        self._process = context.Process(target=_serve, args=arguments, daemon=True)
        self._process.start()

    def timed(self, calls: int) -> tuple[NDArray[Any], float]:
        """Solution, and seconds per call, measured inside.

        Raises:
            TimeoutError: no answer.
        """
        self._connection.send(calls)
        if not self._connection.poll(PATIENCE):
            raise TimeoutError(f"no answer in {PATIENCE:.0f} s")
        return self._connection.recv()

    def close(self) -> None:
        self._process.kill()
        self._process.join()
