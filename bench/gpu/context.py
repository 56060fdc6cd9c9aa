"""What a step of the check gets: options, time, and the place where its results go."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
Document = dict[str, Any]


@dataclass
class Context:
    """One step.

    Attributes:
        quick: shorter runs of fewer cases.
        dry: on CPU tensors of tiny sizes; no result means anything.
        deadline: time.monotonic() after which no new case begins.
        earlier: the document with the results of the steps before.
        folder: for files beside the results; None where there are none.
        part: file that the results are written to after every row; None to keep them.
    """

    quick: bool = False
    dry: bool = False
    deadline: float = math.inf
    earlier: Document = field(default_factory=dict)
    folder: Path | None = None
    part: Path | None = None
    results: dict[str, Any] = field(default_factory=dict)

    @property
    def device(self) -> str:
        """Device of the tensors."""
        return "cpu" if self.dry else "cuda"

    def left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.monotonic()

    def store(self) -> None:
        """Write what there is: a later crash does not take it away."""
        if self.part is not None:
            write_json(self.part, self.results)

    def say(self, text: str) -> None:
        """Progress, for whoever watches."""
        print(f"    {text}", flush=True)

    def put(self, **values: Any) -> None:
        """Add to the results."""
        self.results.update(values)
        self.store()

    def row(self, table: str, shown: str, **values: Any) -> None:
        """Add a row to a table of the results, and print the fields named in ``shown``."""
        self.results.setdefault(table, []).append(values)
        names = [name for name in shown.split() if name in values]
        self.say(", ".join(f"{name} {_short(values[name])}" for name in names))
        self.store()

    def target(self, text: str, value: float, *, least: float = -math.inf, most: float = math.inf):
        """A target of the project, met or missed."""
        met = least <= value <= most
        target = {"target": text, "value": value, "met": met}
        target.update(at_least=least) if math.isfinite(least) else target.update(at_most=most)
        self.results.setdefault("targets", []).append(target)
        self.store()

    @contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """A case whose failure is recorded and does not stop the step."""
        try:
            yield
        except Exception as error:
            text = f"{type(error).__name__}: {str(error)[:300]}"
            self.results.setdefault("failures", []).append({"case": what, "error": text})
            self.say(f"{what} failed: {text}")
            self.store()
            if not self.dry:
                _free()

    def cases(self, cases: list[Any], need: float = 2.0) -> Iterator[Any]:
        """Those for which there is time; the others are recorded."""
        for index, case in enumerate(cases):
            if self.left() < need:
                rest = [str(other) for other in cases[index:]]
                self.results.setdefault("out of time", []).extend(rest)
                self.say(f"out of time, left out: {', '.join(rest)}")
                self.store()
                return
            yield case


Step = Callable[[Context], None]


def _free() -> None:
    """Give cached memory back after an error, so that the next case has it."""
    import gc

    import torch

    gc.collect()
    try:
        torch.cuda.empty_cache()
    except RuntimeError as error:  # the CUDA context itself may be gone
        sys.stderr.write(f"{error}\n")


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def write_json(path: Path, value: Any) -> None:
    """In one piece: a reader never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".new")
    draft.write_text(json.dumps(_plain(value), indent=1) + "\n")
    os.replace(draft, path)


def _plain(value: Any) -> Any:
    """JSON has no NaN and no infinity."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
