"""``sylvinit correlation``."""

from __future__ import annotations

import argparse
from pathlib import Path

from sylvinit.cli.output import say
from sylvinit.errors import OptionError


def add_options(parser: argparse.ArgumentParser) -> None:
    """Description, options and function of the subcommand."""
    parser.description = (
        "Estimate the correlation matrix of the spatial filters of trained weights, for "
        "sylvinit.correlated_init_."
    )
    parser.set_defaults(run=run)
    parser.add_argument("weights", metavar="FILE", help="a state dict: .safetensors, .pt")
    parser.add_argument(
        "--kernel",
        metavar="SIZE",
        default="3x3",
        help='"3x3" (default) or "3", "1x3", "3x3x3"; a 1-D kernel with a comma: "5,"',
    )
    parser.add_argument("--per-layer", action="store_true", help="show every layer, too")
    parser.add_argument(
        "--out", metavar="FILE.txt", type=Path, help="write R there, for sylvinit.priors.load"
    )
    parser.add_argument("--source", metavar="TEXT", help="what the weights are; kept in the file")


def run(arguments: argparse.Namespace) -> None:
    """Estimate, show and write the matrix."""
    import sylvinit
    from sylvinit.correlated import correlation_by_distance
    from sylvinit.io import model_files
    from sylvinit.priors.matrix import mean_off_diagonal

    if arguments.out is not None:
        model_files.check_output("--out", arguments.out, ".txt")
    kernel = _kernel(arguments.kernel)
    corr = sylvinit.filter_correlation(arguments.weights, kernel)
    taps = len(corr)
    say(f"{corr.filters} filters of {corr.units} units in {len(corr.layers)} layers")
    say(f"mean correlation of two taps {mean_off_diagonal(corr):.3f}")
    if taps <= 9:
        say("\n".join("  " + "".join(f"{value:7.3f}" for value in row) for row in corr.tolist()))
    profile = correlation_by_distance(corr)
    say("distance (taps)  correlation  standard error")
    errors = profile.standard_error
    for index, distance in enumerate(profile.distance.tolist()):
        error = "" if errors is None else f"{float(errors[index]):.3f}"
        say(f"{distance:15.2f}  {float(profile.correlation[index]):11.3f}  {error:>14}")
    if arguments.per_layer:
        layers = sylvinit.filter_correlation(arguments.weights, kernel, per_layer=True)
        width = max(map(len, layers))
        say("mean correlation of two taps, layer by layer")
        for name, one in layers.items():
            say(f"  {name:<{width}}  {mean_off_diagonal(one):+.3f}  of {one.filters} filters")
    if arguments.out is not None:
        sylvinit.priors.save(corr, arguments.out, source=arguments.source)
        say(f"matrix of all layers together: {arguments.out}")


def _kernel(text: str) -> int | tuple[int, ...]:
    """As in Python: "5," is one axis, where "5" stands for 5x5."""
    try:
        sizes = tuple(int(size) for size in text.removesuffix(",").split("x"))
    except ValueError as error:
        raise OptionError(f"--kernel: expected a size as 3x3, 3, or 5, got {text!r}") from error
    return sizes[0] if len(sizes) == 1 and not text.endswith(",") else sizes
