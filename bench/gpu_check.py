"""Everything there is to check on a GPU: build, tests, benchmarks, sanitizer.

    python bench/gpu_check.py --call 1 [--output DIR]   390 s: build, tests, ceilings, gram
    python bench/gpu_check.py --call 2 [--output DIR]   270 s: eigen, initialize, sylvester,
                                                        sanitizer
    python bench/gpu_check.py --merge FILE FILE ... [--output DIR]
    python bench/gpu_check.py --only STEP,STEP --seconds N [--quick]

Nothing is fetched. The extension is built inside this tree, for the GPU that is found; DIR gets
results.json, the compiled modules (put into sylvinit/, they save another machine the build) and
verified.json. What is missing is said before anything else is done, and without a GPU or a build
nothing runs: --dry-run goes the same way on tiny tensors of the CPU, and nothing that it writes is
a measurement.

Each step runs in a process of its own with a limit of time, so that a crash, a hang or an error
that ends the CUDA context costs one step; its rows are stored in DIR as they come. A step measures
as many of its cases as there is time for, the most important first. --merge joins the results of
several runs of the same sources on the same kind of GPU; it needs no GPU.

Times are medians over samples by CUDA events after a warm-up, on inputs that take turns so that
none is in the cache; what is compared runs in the same process. Settings of the GPU are left alone.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpu import evidence, merging, summary
from gpu.context import ROOT, Context, Document, write_json
from gpu.processes import execute


@dataclass(frozen=True)
class Stage:
    """A step: its module in bench/gpu, and the most seconds it gets, in full and quick."""

    module: str
    seconds: float
    quick: float


STEPS = {
    "environment": Stage("machine", 40, 40),
    "build": Stage("building", 130, 130),
    "tests": Stage("testing", 140, 60),
    "ceilings": Stage("ceilings", 25, 15),
    "gram": Stage("gram", 250, 30),
    "eigen": Stage("eigen", 55, 20),
    "initialize": Stage("initialization", 75, 40),
    "sylvester": Stage("sylvester", 25, 20),
    "sanitizer": Stage("sanitizing", 200, 60),
    "all_patches": Stage("all_patches", 45, 20),
}
# Without these nothing else has a meaning.
_NEEDED = ("environment", "build")
CALLS = {
    1: ((*_NEEDED, "tests", "ceilings", "gram"), 390.0),
    2: ((*_NEEDED, "eigen", "initialize", "sylvester", "sanitizer"), 270.0),
}
# A step is not begun with less than this, and stops itself this long before it is stopped.
_LEAST, _GRACE = 10.0, 8.0
FORMAT = 2


def main(argv: list[str] | None = None) -> int:
    options = _options(argv)
    if options.step:
        return _child(options)
    if options.merge:
        document = merging.merge([json.loads(path.read_text()) for path in options.merge])
        return _finish(document, options)
    begin = time.monotonic()
    document = _new_document(options)
    for name in options.only:
        stage = STEPS[name]
        limit = stage.quick if options.quick else stage.seconds
        limit = min(limit, options.seconds - (time.monotonic() - begin))
        print(f"[{time.monotonic() - begin:4.0f} s] {name}, at most {limit:.0f} s", flush=True)
        if limit < _LEAST:
            entry = _entry("skipped", "no time was left", 0.0, {})
        elif options.in_process:
            entry = _run_here(name, options, document, limit)
        else:
            entry = _run_apart(name, options, document, limit)
        document["steps"][name] = {**entry, "quick": options.quick}
        _complete(document)
        write_json(options.output / "results.json", document)
        if name in _NEEDED and entry["status"] != "ok":
            print(f"stopped, because {name} {entry['status']}:\n{entry['error']}", file=sys.stderr)
            return 2
    return _finish(document, options)


def _finish(document: Document, options: argparse.Namespace) -> int:
    """Write everything, and print the short table."""
    _complete(document)
    write_json(options.output / "results.json", document)
    if document["verified"]:
        evidence.record(document["verified"], options.output)
    print("\n" + "\n".join(summary.lines(document)))
    print(f"\n{options.output}")
    return 0 if all(step["status"] == "ok" for step in document["steps"].values()) else 1


def _options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--call", type=int, choices=list(CALLS), help="its steps and its seconds")
    parser.add_argument("--only", type=_steps, help=", ".join(STEPS))
    parser.add_argument("--seconds", type=float, help="for everything; default: no limit")
    parser.add_argument("--quick", action="store_true", help="fewer cases")
    parser.add_argument("--output", type=Path, metavar="DIR", help="default: build/gpu_check")
    parser.add_argument("--merge", type=Path, nargs="+", metavar="FILE", help="results.json")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--in-process", action="store_true", help="no process for each step")
    for name in ("step", "part", "before"):
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    steps, seconds = CALLS.get(options.call, (tuple(STEPS), float("inf")))
    options.only = options.only or list(steps)
    options.seconds = seconds if options.seconds is None else options.seconds
    if not options.dry_run:
        options.only = [name for name in STEPS if name in options.only or name in _NEEDED]
    default = ROOT / "build" / ("gpu_check_dry_run" if options.dry_run else "gpu_check")
    options.output = (options.output or default).resolve()
    if options.dry_run and options.output.is_relative_to(ROOT / "bench" / "results"):
        parser.error("a dry run writes no results: choose an --output outside bench/results")
    return options


def _steps(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in STEPS]
    if unknown or not names:
        raise argparse.ArgumentTypeError(f"unknown {unknown}; the steps are {', '.join(STEPS)}")
    return [name for name in STEPS if name in names]


def _new_document(options: argparse.Namespace) -> Document:
    from gpu.machine import source_hash

    document: Document = {"format": FORMAT, "dry_run": options.dry_run, "csrc": source_hash()}
    document.update(device=None, date=None, steps={})
    return document


def _complete(document: Document) -> None:
    """The device and the date, from the environment; and what the results say so far."""
    machine = document["steps"].get("environment", {}).get("results", {})
    document.update(device=machine.get("gpu"), date=machine.get("date"))
    document["targets"] = summary.all_targets(document)
    document["verified"], document["not_verified"] = evidence.verdict(document)


def _earlier(document: Document) -> Document:
    """Results of the steps before, by name."""
    return {name: step["results"] for name, step in document["steps"].items()}


def _entry(status: str, error: str, seconds: float, results: dict[str, Any]) -> dict[str, Any]:
    return {"status": status, "error": error, "seconds": seconds, "results": results}


def _run_here(
    name: str, options: argparse.Namespace, document: Document, limit: float
) -> dict[str, Any]:
    begin = time.monotonic()
    context = Context(
        quick=options.quick,
        dry=options.dry_run,
        deadline=begin + limit - _GRACE,
        earlier=_earlier(document),
        folder=options.output,
        part=Path(options.part) if options.part else None,
    )
    status, error = "ok", ""
    try:
        with _few_threads(options.dry_run):
            importlib.import_module(f"gpu.{STEPS[name].module}").run(context)
    except Exception:
        status, error = "failed", traceback.format_exc()[-2000:]
        print(error, flush=True)
    context.store()
    return _entry(status, error, time.monotonic() - begin, context.results)


@contextmanager
def _few_threads(dry: bool) -> Iterator[None]:
    """On tensors as small as those of a dry run, several threads only wait for one another."""
    torch: Any = sys.modules.get("torch")
    if not dry or torch is None:  # a child has not imported it yet, see _run_apart
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _run_apart(
    name: str, options: argparse.Namespace, document: Document, limit: float
) -> dict[str, Any]:
    """In a child process; what it stored before it ended counts, however it ended.

    Its file lies in the output folder until then: it is left there if this process is ended too.
    """
    before, part = options.output / "before.json", options.output / f"{name}.part.json"
    write_json(before, document)
    part.unlink(missing_ok=True)
    command = [sys.executable, __file__, "--step", name, "--part", str(part)]
    command += ["--before", str(before), "--seconds", str(limit), "--output", str(options.output)]
    flags = {"--quick": options.quick, "--dry-run": options.dry_run}
    command += [flag for flag, given in flags.items() if given]
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = {"PYTHONPATH": os.pathsep.join(paths)}  # this tree, whatever is installed
    env.update({"OMP_NUM_THREADS": "1"} if options.dry_run else {})
    done = execute(command, limit, env=env, show=True)
    results = json.loads(part.read_text()) if part.exists() else {}
    part.unlink(missing_ok=True)
    before.unlink()
    ended = results.pop("_ended", None)
    if ended:
        return _entry(ended["status"], ended["error"], done.seconds, results)
    if done.code is None:
        return _entry("timed out", f"stopped after {limit:.0f} s", done.seconds, results)
    return _entry("crashed", f"status {done.code}: {done.tail[-1500:]}", done.seconds, results)


def _child(options: argparse.Namespace) -> int:
    document = json.loads(Path(options.before).read_text())
    entry = _run_here(options.step, options, document, options.seconds)
    ended = {"status": entry["status"], "error": entry["error"]}
    write_json(Path(options.part), {**entry["results"], "_ended": ended})
    return 0


if __name__ == "__main__":
    sys.exit(main())
