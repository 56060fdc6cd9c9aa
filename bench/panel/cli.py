"""The command line of the panel."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean

from panel.arms import ARMS, AUTO, BEST, OWN
from panel.pairs import PAIRS, TEST_SEEDS, Pair
from panel.plan import FOLDER, Records, planned, read
from panel.seconds import measure, store
from panel.table import page
from panel.work import lacking, remaining, work


class UsageError(Exception):
    """Arguments that name nothing there is."""


def main(argv: Sequence[str] | None = None, description: str | None = None) -> int:
    """Run the command line; the exit code: 0, 1 where runs failed, 2 for bad input."""
    arguments = _parser(description).parse_args(argv)
    command: Callable[[argparse.Namespace], int] = arguments.command
    try:
        return command(arguments)
    except UsageError as error:
        print(error, file=sys.stderr)
        return 2


def _run(arguments: argparse.Namespace) -> int:
    pairs: list[Pair] = []
    for pair in _pairs(arguments):
        reason = lacking(pair)
        if reason is None:
            pairs.append(pair)
        else:
            print(f"{pair.title} is left out, it lacks: {reason}", flush=True)
    cells = [cell for pair in pairs for cell in pair.cells]
    deadline = None if arguments.minutes is None else time.time() + 60 * arguments.minutes
    failures = work(
        lambda records: planned(cells, arguments.arms, TEST_SEEDS, records),
        lambda: read(pairs, arguments.results),
        arguments.results,
        arguments.workers,
        deadline,
    )
    _status(arguments)
    print(f"{failures} runs failed")
    return 1 if failures else 0


def _status(arguments: argparse.Namespace) -> int:
    """What is done of each pair, and the processor minutes that the rest may take."""
    pairs = _pairs(arguments)
    records = read(pairs, arguments.results)
    minutes = 0.0
    for pair in pairs:
        plan = list(planned(pair.cells, arguments.arms, TEST_SEEDS, records))
        done, missing, unknown = remaining(plan, records)
        seconds = _mean_seconds(pair, records)
        text = f"{pair.title}: {done} runs done, {missing} to do, up to {unknown} more"
        if seconds is not None:
            minutes += seconds * (missing + unknown) / 60
            text += f"; {seconds:.1f} s each"
        print(text)
    print(f"at most {minutes:.0f} processor minutes left of pairs with a run")
    return 0


def _seconds(arguments: argparse.Namespace) -> int:
    for pair in _pairs(arguments):
        if lacking(pair) is None:
            seconds = measure(pair, arguments.arms)
            store({pair.title: seconds}, arguments.results)
            print(pair.title, *(f"{name} {value:.3f} s" for name, value in seconds.items()))
    return 0


def _mean_seconds(pair: Pair, records: Records) -> float | None:
    seconds = [line["seconds"] for line in records.values() if line["config"] == pair.slug]
    return fmean(seconds) if seconds else None


def _table(arguments: argparse.Namespace) -> int:
    text = page(_pairs(arguments), arguments.results, arguments.arm)
    if arguments.out is None:
        print(text)
    else:
        arguments.out.write_text(text, encoding="utf-8")
        print(f"wrote {arguments.out}")
    return 0


def _pairs(arguments: argparse.Namespace) -> list[Pair]:
    """Those whose titles contain one of the words, all if there are none."""
    words = [word.lower() for word in arguments.pairs or ()]
    chosen = [
        pair for pair in PAIRS if not words or any(word in pair.title.lower() for word in words)
    ]
    if not chosen:
        raise UsageError(f"--pairs: expected a part of one of {[pair.title for pair in PAIRS]}")
    return chosen


def _parser(description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="panel",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(
        name: str, command: Callable[[argparse.Namespace], int], text: str
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text)
        sub.set_defaults(command=command)
        sub.add_argument("--pairs", nargs="+", metavar="WORD", help="only titles with one of these")
        sub.add_argument("--results", type=Path, default=FOLDER, help="folder of the results")
        return sub

    def add_arms(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--arms", nargs="+", choices=tuple(ARMS), default=[OWN, BEST, AUTO])

    run = add("run", _run, "do the runs that are missing")
    add_arms(run)
    run.add_argument("--workers", type=int, default=1, help="processes of one thread each")
    run.add_argument("--minutes", type=float, help="begin no run after this time")
    add_arms(add("status", _status, "what is done"))
    seconds = add("seconds", _seconds, "how long initializations take, one after the other")
    seconds.add_argument("--arms", nargs="+", choices=tuple(ARMS), default=[BEST, AUTO])
    table = add("table", _table, "the page, from the results alone")
    table.add_argument("--arm", choices=tuple(ARMS), default=AUTO, help="the one that has to pass")
    table.add_argument("--out", type=Path, help="file, by default standard output")
    return parser
