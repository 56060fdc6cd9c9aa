"""Everything there is to check on a GPU, in one command: build, tests, sanitizer, benchmarks.

    python bench/gpu_check.py [--quick] [--only STEP,STEP] [--previous FILE] [--output FILE]

Each step runs in a process of its own with a limit of time, so that a crash, a hang or an error
that ends the CUDA context costs one step; its rows are stored as they come. A step measures as many
of its cases as there is time for, the most important first. The results of an earlier run of the
same sources on the same kind of GPU can be completed with --previous. Without a GPU it stops at
once; --dry-run goes the same way there on tiny tensors of the CPU: nothing that it writes is a
measurement.

Times are medians over samples by CUDA events after a warm-up, on inputs that take turns so that
none is in the cache; what is compared runs in the same process. Settings of the GPU are left alone.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpu import evidence, summary
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
    "build": Stage("building", 240, 240),
    "tests": Stage("testing", 300, 60),
    "sanitizer": Stage("sanitizing", 240, 60),
    "ceilings": Stage("ceilings", 40, 30),
    "gram": Stage("gram", 200, 30),
    "sylvester": Stage("sylvester", 45, 20),
    "initialize": Stage("initialization", 120, 40),
    "all_patches": Stage("all_patches", 45, 20),
    "eigen": Stage("eigen", 150, 20),
}
# A step is not begun with less than this, and stops itself this long before it is stopped.
_LEAST, _GRACE = 10.0, 8.0
FORMAT = 1


def main(argv: list[str] | None = None) -> int:
    options = _options(argv)
    if options.step:
        return _child(options)
    begin = time.monotonic()
    document = _new_document(options)
    for name in options.only:
        stage = STEPS[name]
        limit = stage.quick if options.quick else stage.seconds
        limit = min(limit, options.seconds - (time.monotonic() - begin))
        print(f"[{time.monotonic() - begin:4.0f} s] {name}, at most {limit:.0f} s", flush=True)
        if limit < _LEAST:
            document["steps"][name] = _entry("skipped", "no time was left", 0.0, {})
        elif options.in_process:
            document["steps"][name] = _run_here(name, options, document, limit)
        else:
            document["steps"][name] = _run_apart(name, options, document, limit)
        if name == "environment" and not options.dry_run and _without_gpu(document):
            print("no GPU: torch.cuda.is_available() is False. See --dry-run.", file=sys.stderr)
            return 2
        _complete(document)
        write_json(options.output, document)
    line, _ = evidence.verdict(document)
    if line and options.record:
        evidence.record(line)
    print("\n" + "\n".join(summary.lines(document)))
    print(f"\n{options.output}")
    return 0 if all(step["status"] == "ok" for step in document["steps"].values()) else 1


def _options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="about two minutes after the build")
    parser.add_argument("--only", type=_steps, default=list(STEPS), help=", ".join(STEPS))
    parser.add_argument("--seconds", type=float, default=570.0, help="for everything")
    parser.add_argument("--no-build", action="store_true", help="check what is installed")
    parser.add_argument("--output", type=Path, help="default: bench/results/gpu_<device>.json")
    parser.add_argument("--previous", type=Path, help="results of other steps to be kept")
    parser.add_argument(
        "--record", action="store_true", help="add to sylvinit/backends/verified.json"
    )
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--in-process", action="store_true", help="no process for each step")
    for name in ("step", "part"):
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    options.output = options.output or _default_output(options.dry_run)
    if (options.previous or not options.dry_run) and "environment" not in options.only:
        options.only = ["environment", *options.only]  # is there a GPU, and of the same kind?
    if options.dry_run and options.output.resolve().is_relative_to(ROOT / "bench" / "results"):
        parser.error("a dry run writes no results: choose an --output outside bench/results")
    return options


def _steps(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in STEPS]
    if unknown or not names:
        raise argparse.ArgumentTypeError(f"unknown {unknown}; the steps are {', '.join(STEPS)}")
    return [name for name in STEPS if name in names]


def _default_output(dry: bool) -> Path:
    if dry:
        return Path(tempfile.gettempdir()) / "gpu_check_dry_run.json"
    from gpu.machine import smi

    name = (smi() or {}).get("name", "none")
    return ROOT / "bench" / "results" / f"gpu_{re.sub(r'[^A-Za-z0-9]+', '_', name).lower()}.json"


def _new_document(options: argparse.Namespace) -> Document:
    from gpu.machine import source_hash

    document: Document = {"format": FORMAT, "dry_run": options.dry_run, "quick": options.quick}
    document.update(csrc=source_hash(), device=None, date=None, steps={})
    if options.previous:
        earlier = json.loads(options.previous.read_text())
        same = all(earlier.get(key) == document[key] for key in ("format", "csrc", "dry_run"))
        if not same or earlier.get("quick") != options.quick:
            raise SystemExit(f"{options.previous} is of other sources, or of another kind of run")
        document.update({key: earlier.get(key) for key in ("device", "date")})
        document["steps"] = earlier["steps"]
    return document


def _complete(document: Document) -> None:
    """The device and the date, from the environment; and what the results say so far."""
    machine = document["steps"].get("environment", {}).get("results", {})
    found = machine.get("gpu")
    if document["device"] not in (None, found):
        raise SystemExit(f"--previous is of {document['device']}, this is {found}")
    document.update(device=found, date=machine.get("date"))
    document["targets"] = summary.all_targets(document)
    document["verified"], document["not_verified"] = evidence.verdict(document)


def _without_gpu(document: Document) -> bool:
    """Whether the environment was looked at, and there was none."""
    step = document["steps"]["environment"]
    return step["status"] == "ok" and step["results"].get("gpu") is None


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
        build=not options.no_build,
        deadline=begin + limit - _GRACE,
        earlier=_earlier(document),
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
    """In a child process; what it stored before it ended counts, however it ended."""
    with tempfile.TemporaryDirectory() as folder:
        before, part = Path(folder) / "before.json", Path(folder) / "part.json"
        write_json(before, document)
        command = [sys.executable, __file__, "--step", name, "--part", str(part)]
        command += ["--previous", str(before), "--seconds", str(limit)]
        command += ["--output", str(options.output)]
        flags = {"--quick": options.quick, "--dry-run": options.dry_run}
        flags["--no-build"] = options.no_build
        command += [flag for flag, given in flags.items() if given]
        env = {"OMP_NUM_THREADS": "1"} if options.dry_run else {}
        done = execute(command, limit, env=env, show=True)
        results = json.loads(part.read_text()) if part.exists() else {}
    ended = results.pop("_ended", None)
    if ended:
        return _entry(ended["status"], ended["error"], done.seconds, results)
    if done.code is None:
        return _entry("timed out", f"stopped after {limit:.0f} s", done.seconds, results)
    return _entry("crashed", f"status {done.code}: {done.tail[-1500:]}", done.seconds, results)


def _child(options: argparse.Namespace) -> int:
    document = json.loads(options.previous.read_text())
    entry = _run_here(options.step, options, document, options.seconds)
    ended = {"status": entry["status"], "error": entry["error"]}
    write_json(Path(options.part), {**entry["results"], "_ended": ended})
    return 0


if __name__ == "__main__":
    sys.exit(main())
