"""initialize_ on the networks that libraries offer, built with random weights.

    python bench/zoo.py run [--library timm] [--match PATTERN] [--sample 15] [--jobs 2] [--again]
    python bench/zoo.py table [--out docs/zoo.md]

timm: every family at its smallest; transformers: every image, sequence and causal model that builds
from a shrunken configuration; torchvision: classifiers, segmentation models and, through
forward_fn, detectors. Needs timm, torchvision and transformers; nothing is downloaded.

Every model runs in a process of its own with a limit of time and memory, on one thread. A finished
model is a line of the results; a run that was stopped goes on with those that have none.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import multiprocessing
import os
import re
import resource
import sys
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from environment import environment
from zoo_models import LIBRARIES, library
from zoo_models.measure import measure
from zoo_models.table import table

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results" / "zoo.jsonl"
PAGE = ROOT / "docs" / "zoo.md"
_MOST_PARAMETERS = 30_000_000
# Imports once for all models; a process that is forked from this one starts at once.
_PROCESSES = multiprocessing.get_context("forkserver")


def _limited(name: str, memory: float, results: Connection) -> None:
    """In the model's own process: measure it, and send its row."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    size = int(memory * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (size, size))
    results.send(measure(name, _MOST_PARAMETERS, built=lambda: results.send(None)))


def measure_apart(name: str, seconds: float, memory: float) -> dict[str, Any]:
    """The row of a model, or that its process ended or took too long."""
    receiver, sender = _PROCESSES.Pipe(duplex=False)
    process = _PROCESSES.Process(target=_limited, args=(name, memory, sender), daemon=True)
    process.start()
    sender.close()
    status = "not built"
    try:
        while receiver.poll(seconds):
            row = receiver.recv()
            if row is not None:
                return row
            status = "too slow"  # if it is sylvinit that takes longer
        return {"name": name, "status": status, "error": f"more than {seconds:g} s"}
    except EOFError:
        process.join()
        return {"name": name, "status": "died", "error": f"exit code {process.exitcode}"}
    finally:
        process.kill()
        process.join()
        receiver.close()


def read(path: Path) -> dict[str, dict[str, Any]]:
    """Rows by name; of a model that was measured twice the later one."""
    if not path.exists():
        return {}
    lines = path.read_text().splitlines()
    return {row["name"]: row for row in map(json.loads, lines)}


def versions() -> dict[str, str]:
    return {source: importlib.metadata.version(source) for source in LIBRARIES}


def names_of(source: str, results: Path) -> list[str]:
    """Of all models to try, kept beside the results: timm builds 1,400 to find the smallest."""
    path = results.with_suffix(f".{source}-{versions()[source]}.json")
    if not path.exists():
        names = [f"{source}/{name}" for name in library(source).names(_MOST_PARAMETERS)]
        path.write_text(json.dumps(names))
    return json.loads(path.read_text())


def _count(results: Path) -> int | None:
    """Of all models to try, if they are known."""
    paths = [results.with_suffix(f".{x}-{version}.json") for x, version in versions().items()]
    known = all(path.exists() for path in paths)
    return sum(len(json.loads(path.read_text())) for path in paths) if known else None


def run(arguments: argparse.Namespace) -> None:
    done = {} if arguments.again else read(arguments.results)
    made_in = environment() | versions() | {"threads": 1}
    for source in arguments.library or LIBRARIES:
        names = [
            name for name in names_of(source, arguments.results) if re.search(arguments.match, name)
        ]
        if arguments.sample:
            names = names[:: math.ceil(len(names) / arguments.sample)]
        names = [name for name in names if name not in done]
        for count, row in enumerate(_rows(names, arguments), start=1):
            with arguments.results.open("a") as file:
                file.write(json.dumps(row | {"environment": made_in}) + "\n")
            error = row.get("error", "")
            print(f"{count}/{len(names)} {row['name']}: {row['status']} {error[:200]}", flush=True)


def _rows(names: list[str], arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """As the models finish."""
    with ThreadPoolExecutor(arguments.jobs) as pool:
        pending = [
            pool.submit(measure_apart, name, arguments.seconds, arguments.memory) for name in names
        ]
        for finished in as_completed(pending):
            yield finished.result()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("run", "table"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--library", action="append", choices=LIBRARIES)
    parser.add_argument("--match", default="", help="of library/name, a regular expression")
    parser.add_argument("--sample", type=int, help="at most so many models of each library")
    parser.add_argument("--again", action="store_true", help="also those that have a result")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=300, help="for each model")
    parser.add_argument("--memory", type=float, default=8, help="GiB for each model")
    parser.add_argument("--out", type=Path, default=PAGE, help="of the table")
    arguments = parser.parse_args()
    if arguments.command == "run":
        os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)  # for what is imported beforehand
        modules = [f"zoo_models.{name}_models" for name in LIBRARIES]
        _PROCESSES.set_forkserver_preload(["environment", "zoo_models.measure", *modules])
        run(arguments)
    elif rows := read(arguments.results):
        arguments.out.write_text(table(list(rows.values()), _count(arguments.results)))
    else:
        sys.exit(f"no results in {arguments.results}")


if __name__ == "__main__":
    main()
