"""``sylvinit info``."""

from __future__ import annotations

import argparse
import os
from importlib import metadata

from sylvinit import __version__
from sylvinit.cli.output import say


def add_options(parser: argparse.ArgumentParser) -> None:
    """Description, options and function of the subcommand."""
    parser.description = "Show versions, threads and which backend runs, and why."
    parser.set_defaults(run=run)


def run(_: argparse.Namespace) -> None:
    """Show what is installed and what runs."""
    import platform

    import torch

    from sylvinit import backends
    from sylvinit.backends import extension
    from sylvinit.sylvester import lapack

    say(f"sylvinit {__version__}, Python {platform.python_version()}")
    for package in ("torch", "numpy", "scipy", "scikit-learn", "safetensors", "matplotlib"):
        say(f"  {package:<14}{_version(package)}")
    say(f"  {'threads':<14}{torch.get_num_threads()} of {os.cpu_count()} processors")
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    say(f"  {'GPUs':<14}{', '.join(gpus) or 'none'}")
    say("CUDA extension")
    say(f"  {'build':<14}{extension.description()}")
    reason = extension.reason()
    say(f"  {'runs here':<14}{f'no: {reason}' if reason else 'yes'}")
    say(f"  {'verification':<14}{extension.verification()}")
    say("backends, in the order in which they are tried")
    for row in backends.table():
        state = "runs" if row.available else "does not run"
        say(f"  {row.name:<8}{state:<14}{'/'.join(row.devices):<8}{row.reason}")
    say("solve_sylvester")
    say(f"  {'on the CPU':<14}{lapack.description()}")
    say(f"  {'on a GPU':<14}Hermitian equations by the first backend that runs, others on the CPU")


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
