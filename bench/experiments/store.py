"""Results as lines of JSON that many processes append to.

A line is written in one call, under a lock, and flushed to the disk before the lock is released: a
process that is killed loses the run in progress and nothing else. Should the machine stop in the
middle of a line, that line is ignored when reading and removed by the next writer.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from config import key_of
from environment import environment

FOLDER = Path(__file__).resolve().parent.parent / "results" / "experiments"


class Results:
    """The file of one configuration.

    Attributes:
        path: of the file; it need not exist yet.
    """

    def __init__(self, name: str, folder: Path = FOLDER) -> None:
        self.path = folder / f"{name}.jsonl"

    def records(self) -> dict[str, dict[str, Any]]:
        """Records of runs by their key; of two with the same key the first."""
        found: dict[str, dict[str, Any]] = {}
        for line in self._lines():
            if "arm" in line:
                found.setdefault(key_of(line), line)
        return found

    def environments(self) -> dict[str, dict[str, Any]]:
        """The environments that records refer to, by id."""
        return {line["id"]: line["environment"] for line in self._lines() if "id" in line}

    def append(self, records: Iterable[dict[str, Any]]) -> None:
        """Add records of runs, and this process's environment where it is new to the file."""
        identity, surroundings = current_environment()
        lines = [record | {"environment": identity} for record in records]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "ab+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # released when the file is closed
            file.seek(0)
            content = file.read()
            whole = content.rfind(b"\n") + 1
            if whole < len(content):
                file.truncate(whole)
            if f'"id": "{identity}"'.encode() not in content[:whole]:
                lines.insert(0, {"environment": surroundings, "id": identity})
            file.write("".join(json.dumps(_short(line)) + "\n" for line in lines).encode())
            file.flush()
            os.fsync(file.fileno())

    def _lines(self) -> list[dict[str, Any]]:
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return []
        return [json.loads(line) for line in content.split(b"\n")[:-1]]


@functools.lru_cache(maxsize=1)
def current_environment() -> tuple[str, dict[str, Any]]:
    """This process's environment without the date, and a hash of it."""
    content = environment()
    del content["date"]
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:10], content


def _short(value: Any) -> Any:
    """Numbers with six digits, which is more than any of them means."""
    if isinstance(value, dict):
        return {key: _short(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_short(item) for item in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value
