"""Running other programs with a limit of time, and keeping the end of what they print."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path

TAIL = 4000


@dataclass(frozen=True)
class Done:
    """How a program ended.

    Attributes:
        code: exit status; None if it was stopped at the limit.
        output: everything it printed.
        seconds: it took.
    """

    code: int | None
    output: str
    seconds: float

    @property
    def tail(self) -> str:
        """The end of the output."""
        return self.output[-TAIL:]


def execute(
    command: list[str],
    limit: float,
    *,
    env: dict[str, str] | None = None,
    cwd: Path | None = None,
    show: bool = False,
) -> Done:
    """Run it in a session of its own, of which everything is ended at the limit.

    Args:
        command: program and arguments.
        limit: seconds.
        env: variables beside those of this process.
        cwd: folder to run in.
        show: pass on what it prints, as it comes.
    """
    begin = time.monotonic()
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env={**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})},
        cwd=cwd,
        start_new_session=True,
    )
    lines: list[str] = []

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if show:
                print(line, end="", flush=True)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    code: int | None
    try:
        code = process.wait(timeout=max(limit, 0.1))
    except subprocess.TimeoutExpired:
        code = None
    _end(process)
    reader.join(timeout=5)
    return Done(code, "".join(lines), time.monotonic() - begin)


def _end(process: subprocess.Popen[str]) -> None:
    """Whatever is left of the session, children included."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
