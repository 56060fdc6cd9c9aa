"""The command ``sylvinit``: demo, init, correlation, info.

The only part of the package that writes to standard output. A module for each subcommand; imports
that take time wait until one needs them, so that ``--help`` is quick.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys
from typing import TYPE_CHECKING

from sylvinit import __version__
from sylvinit.cli import correlation, demo, info, init
from sylvinit.errors import SylvinitError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

EXIT_ERROR, EXIT_INTERRUPTED = 2, 130  # 128 + SIGINT, as shells report it


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; ``argv`` is what follows the program's name.

    Returns:
        The exit status: 0, 2 after an error in the arguments, the data or the model, 130 after
        Ctrl-C.
    """
    arguments = _parser().parse_args(argv)
    with _log_on_stderr(arguments.verbose):
        try:
            arguments.run(arguments)
        except SylvinitError as error:
            if arguments.verbose:
                raise
            sys.stderr.write(f"sylvinit: error: {' '.join(str(error).split())}\n")
            return EXIT_ERROR
        except KeyboardInterrupt:
            sys.stderr.write("sylvinit: interrupted\n")
            return EXIT_INTERRUPTED
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sylvinit",
        description="Initialize PyTorch networks from a little data, without gradients.",
    )
    parser.add_argument("--version", action="version", version=f"sylvinit {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name, summary, add_options in (
        ("demo", "see what it does to a network", demo.add_options),
        ("init", "initialize a model of yours", init.add_options),
        ("correlation", "how the filters of trained weights correlate", correlation.add_options),
        ("info", "versions and backends", info.add_options),
    ):
        command = commands.add_parser(name, help=summary)
        command.add_argument(
            "-v", "--verbose", action="store_true", help="log more, and show tracebacks of errors"
        )
        add_options(command)
    return parser


@contextlib.contextmanager
def _log_on_stderr(verbose: bool) -> Iterator[None]:
    """Show log records of this package, a line each, while the command runs."""
    logger, demo_logger = logging.getLogger("sylvinit"), logging.getLogger("sylvinit.demo")
    handler = logging.StreamHandler(sys.stderr)
    former = logger.level, demo_logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG if verbose else logging.WARNING)
    demo_logger.setLevel(logging.INFO)  # the demo takes long: its progress is always shown
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(former[0])
        demo_logger.setLevel(former[1])
