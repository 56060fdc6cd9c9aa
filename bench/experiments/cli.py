"""The command line of the experiments."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from config import Config, ConfigError, cell_label, load_config, names
from data import MissingDataError
from store import FOLDER
from work import Settings, Shard, check_all, missing, planned, work

_REPORT = FOLDER.parents[2] / "docs" / "results.md"


def main(argv: Sequence[str] | None = None, description: str | None = None) -> int:
    """Run the command line.

    Args:
        argv: arguments, None for those of the process.
        description: for --help.

    Returns:
        The exit code: 0, 1 where runs failed, 2 for bad input or missing data.
    """
    arguments = _parser(description).parse_args(argv)
    try:
        command: Callable[[argparse.Namespace], int] = arguments.command
        return command(arguments)
    except (ConfigError, MissingDataError) as error:
        print(error, file=sys.stderr)
        return 2


def _run(arguments: argparse.Namespace) -> int:
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise MissingDataError("--device cuda: torch finds no GPU here")
    configs = [load_config(name) for name in arguments.configs]
    every = {
        seed for config in configs for cell in config.cells for seed in config.cell_seeds(cell)
    }
    unknown = sorted(set(arguments.seeds or ()) - every)
    if unknown:
        raise ConfigError(f"--seeds: expected some of {sorted(every)}, got {unknown}")
    runs = planned(configs, arguments.seeds, arguments.shard)
    if arguments.cells:
        labels = {cell_label(cell) for config in configs for cell in config.cells}
        unknown = sorted(set(arguments.cells) - labels)
        if unknown:
            raise ConfigError(f"--cells: expected some of {sorted(labels)}, got {unknown}")
        runs = [run for run in runs if cell_label(run.cell) in arguments.cells]
    if arguments.arms:
        known = {arm.name for config in configs for arm in config.arms}
        unknown = sorted(set(arguments.arms) - known)
        if unknown:
            raise ConfigError(f"--arms: expected some of {sorted(known)}, got {unknown}")
        runs = [run for run in runs if run.arm.name in arguments.arms]
    left = missing(runs, arguments.results)
    print(f"{len(left)} of {len(runs)} runs to do", flush=True)
    left = check_all(left)
    deadline = None if arguments.minutes is None else time.time() + 60 * arguments.minutes
    settings = Settings(
        arguments.results,
        arguments.device,
        arguments.workers,
        arguments.stack,
        deadline,
        timed=not arguments.untimed,
    )
    failures = work(left, settings)
    remaining = len(missing(runs, arguments.results))
    print(f"{remaining} runs remain, {failures} failed", flush=True)
    return 1 if failures else 0


def _status(arguments: argparse.Namespace) -> int:
    for config in _configs(arguments):
        runs = planned([config])
        left = {run.key for run in missing(runs, arguments.results)}
        print(f"{config.name}: {len(runs) - len(left)} of {len(runs)} runs")
        for cell in config.cells:
            inside = [run for run in runs if run.cell == cell]
            done = sum(run.key not in left for run in inside)
            print(f"    {cell_label(cell)}: {done} of {len(inside)}")
    return 0


def _report(arguments: argparse.Namespace) -> int:
    # Imported late: only the report needs matplotlib.
    from report import write_report

    out = arguments.out
    if out is None and (arguments.configs or arguments.results != FOLDER):
        raise ConfigError(f"--out: expected a file; {_REPORT.name} is the report of all results")
    write_report(_configs(arguments), arguments.results, out or _REPORT, arguments.partial)
    print(f"wrote {out or _REPORT}")
    return 0


def _list(arguments: argparse.Namespace) -> int:
    for config in _configs(arguments):
        count = len(planned([config]))
        print(f"{config.name:<30}{config.paper:<34}{count:>5} runs  {config.title}")
    return 0


def _configs(arguments: argparse.Namespace) -> list[Config]:
    if arguments.command is not _list and not arguments.results.is_dir():
        raise MissingDataError(f"--results: {arguments.results} is no folder")
    return [load_config(name) for name in arguments.configs or names()]


def _shard(text: str) -> Shard:
    index, separator, count = text.partition("/")
    if not separator or not index.isdigit() or not count.isdigit():
        raise argparse.ArgumentTypeError(f"expected i/n, got {text!r}")
    shard = Shard(int(index), int(count))
    if not 1 <= shard.index <= shard.count:
        raise argparse.ArgumentTypeError(f"expected 1/n to n/n, got {text!r}")
    return shard


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a positive integer, got {text!r}")
    return int(text)


def _parser(description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="experiments",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command: Callable[[argparse.Namespace], int], help: str, many: str) -> None:
        sub = commands.add_parser(name, help=help)
        sub.set_defaults(command=command)
        sub.add_argument("configs", nargs=many, metavar="CONFIG", help="name, or a JSON file")
        sub.add_argument("--results", type=Path, default=FOLDER, help="folder of the results")
        if name == "report":
            sub.add_argument("--out", type=Path, help="file; default for all: docs/results.md")
            sub.add_argument("--partial", action="store_true", help="show unfinished cells, too")
        if name == "run":
            sub.add_argument("--workers", type=_positive, default=1, help="processes")
            sub.add_argument("--shard", type=_shard, metavar="i/n", help="only every n-th seed")
            sub.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
            sub.add_argument("--minutes", type=float, help="begin no run after this time")
            sub.add_argument(
                "--untimed", action="store_true", help="store no times: others use this machine"
            )
            sub.add_argument("--seeds", type=int, nargs="+", help="only these")
            sub.add_argument("--arms", nargs="+", metavar="NAME", help="only these")
            sub.add_argument("--cells", nargs="+", metavar="LABEL", help='only these: "10 shots"')
            sub.add_argument("--stack", type=_positive, default=1, help="networks at once")

    add("run", _run, "do the runs that are missing", "+")
    add("status", _status, "what is done", "*")
    add("report", _report, "tables and figures from the results", "*")
    add("list", _list, "the configurations", "*")
    return parser
