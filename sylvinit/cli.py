"""The command ``sylvinit``: demo, init, correlation, info.

The only part of the package that writes to standard output. Imports that take time wait until a
subcommand needs them, so that ``--help`` is quick.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
import warnings
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from sylvinit import __version__
from sylvinit.errors import OptionError, SylvinitError, SylvinitWarning

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

T = TypeVar("T")

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
        ("demo", "see what it does to a network", _add_demo),
        ("init", "initialize a model of yours", _add_init),
        ("correlation", "how the filters of trained weights correlate", _add_correlation),
        ("info", "versions and backends", _add_info),
    ):
        command = commands.add_parser(name, help=summary)
        command.add_argument(
            "-v", "--verbose", action="store_true", help="log more, and show tracebacks of errors"
        )
        add_options(command)
    return parser


def _add_demo(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Compare He's random weights, the same with a solved head, and sylvinit, before and during "
        "the same training. Writes sylvinit-demo.png and sylvinit-demo.json."
    )
    parser.set_defaults(run=_demo)
    parser.add_argument(
        "--data",
        metavar="DIR",
        help="a cifar-10-batches-py folder: ResNet-20, 100 images a class (minutes); "
        "default: scikit-learn's digits and a small network (seconds)",
    )
    parser.add_argument(
        "--out", metavar="DIR", default="sylvinit-demo", help="default: %(default)s"
    )
    parser.add_argument("--seeds", metavar="N", type=int, default=3, help="default: %(default)s")
    parser.add_argument(
        "--epochs", metavar="N", type=int, help="default: 15 for digits, 5 for CIFAR-10"
    )


def _demo(arguments: argparse.Namespace) -> None:
    from sylvinit.demo.run import run_demo

    result, picture, numbers = run_demo(
        arguments.out, arguments.data, arguments.seeds, arguments.epochs
    )
    task = result.task
    _say(
        f"{task['name']}: {task['network']}, {task['train_samples_per_class']} training images per "
        f"class, {task['test_samples']} test images\n"
        f"test accuracy in %, mean and standard deviation over {len(task['seeds'])} seeds; "
        f"{result.seconds:.0f} s in all\n"
    )
    after = f"after {task['epochs']} epochs"
    _say(f"{'':<18}{'before training':>18}{after:>18}{'initialization':>18}")
    for row in result.summary():
        before, trained = (f"{mean:.1f} ± {std:.1f}" for mean, std in (row.before, row.after))
        seconds = f"{row.init_seconds:.2f} s"
        _say(f"{row.method:<18}{before:>18}{trained:>18}{seconds:>18}")
    _say(f"\npicture: {picture}\nnumbers: {numbers}")


def _add_init(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Build a model, compute its weights from data, and write them as a safetensors file. "
        "safetensors.torch.load_model reads it, tied weights included."
    )
    parser.set_defaults(run=_init)
    add = parser.add_argument
    add(
        "--model",
        metavar="PKG.MOD:FACTORY",
        required=True,
        help="callable without arguments that returns the model; the current directory is searched",
    )
    add(
        "--data",
        metavar="FILE_OR_DIR",
        required=True,
        help=".npy, .npz, .pt, .safetensors (keys x/inputs/images; y/labels: "
        "classes, label maps or numbers) or a cifar-10-batches-py folder; uint8 inputs are scaled "
        "to [0, 1]",
    )
    add("--out", metavar="FILE.safetensors", required=True, type=Path)
    add("--report", metavar="FILE.json", type=Path, help="write the report there, too")
    add("--weights", metavar="FILE", type=Path, help="load these first (.safetensors, .pt)")
    add("--head-only", action="store_true", help="solve the classifier, leave the rest alone")
    add(
        "--preset",
        choices=["auto", "best", "paper", "frozen"],
        help="auto (default), the network's own start or best, whichever a head does better on; "
        "best, for networks that will be trained; paper, the same without scaled rows; or frozen "
        "for hidden layers that will not be trained",
    )
    add(
        "--code",
        action="append",
        metavar="[PATTERN=]CODE",
        help="pca, lda, ica, kmeans, discriminant, correlated, one of them with -pairs, onehot; "
        "may be given for several patterns of layer names",
    )
    add(
        "--lam",
        action="append",
        metavar="[PATTERN=]LAMBDA",
        help="weight of the encoding loss (default 10)",
    )
    add("--head", metavar="NAME", help="the classifier; default: the last layer executed")
    add(
        "--head-code",
        metavar="CODE",
        help="code of the head: onehot (the default for classes), targets (for floats), pca, ...; "
        "with --head-only also logistic and ridge, the more accurate ones on pretrained features",
    )
    add("--patches", metavar="N|all", help="patches of each sample")
    add("--include", action="append", metavar="PATTERN", help="only layers that match; repeatable")
    add("--exclude", action="append", metavar="PATTERN", help="but not these; repeatable")
    add("--microbatch", metavar="N", type=int, help="samples that pass through the model at once")
    add("--max-samples", metavar="N", type=int, help="use at most so many")
    add(
        "--rescale",
        choices=["variance", "none"],
        help="scale rows of hidden layers to unit output variance, or not (default: the preset's)",
    )
    add(
        "--branch-gain",
        metavar="G|depth|none",
        help="scale of batch norms that end a residual branch (default: the preset's)",
    )
    add("--ignore-index", metavar="N", type=int, help="labels to leave out (default -100)")
    add("--balance", action="store_true", default=None, help="classes count alike in the head")
    add("--backend", metavar="NAME", help="auto (default), cpu, torch or cuda")
    add("--device", metavar="DEVICE", help="move the model there first, as cuda:0")
    add("--seed", metavar="N", type=int, help="of patch positions and codes (default 0)")
    parser.epilog = (
        "Started by torchrun, every process takes its part of the rows and one writes the weights: "
        "torchrun --nproc-per-node 4 -m sylvinit init ..."
    )


# What is not an argument of initialize_ or initialize_head_, and what is one of initialize_ alone.
_OWN = {"run", "verbose", "model", "data", "out", "report", "weights", "head_only", "device"}
_NOT_OF_HEADS = {"preset", "code", "include", "exclude", "rescale", "branch_gain"}


def _init(arguments: argparse.Namespace) -> None:
    from sylvinit.io import model_files

    model_files.check_output("--out", arguments.out, ".safetensors")
    if arguments.report is not None:
        model_files.check_output("--report", arguments.report, ".json")
    # Passed on only where they are given, so that every default is written once.
    options: dict[str, Any] = {
        name: value
        for name, value in vars(arguments).items()
        if name not in _OWN and value is not None
    }
    for name, convert in (("code", str), ("lam", float)):
        if name in options:
            options[name] = _per_pattern(f"--{name}", options[name], convert)
    if options.get("branch_gain", "none") not in ("depth", "none"):
        options["branch_gain"] = _number("--branch-gain", options["branch_gain"], float)
    if options.get("patches", "all") != "all":
        options["patches"] = _number("--patches", options["patches"], int)
    extra = ["--" + name.replace("_", "-") for name in options if name in _NOT_OF_HEADS]
    if arguments.head_only and extra:
        raise OptionError(f"{', '.join(extra)}: not with --head-only, which solves a single layer.")

    import sylvinit
    from sylvinit.distributed.launcher import launched
    from sylvinit.io.datasets import load_tensors

    with launched(arguments.device) as place:
        model = model_files.build_model(arguments.model)
        if arguments.weights is not None:
            model_files.load_weights(model, arguments.weights)
        if place.device is not None:
            model_files.move(model, place.device)
        inputs, labels = load_tensors(arguments.data)
        own = place.part(len(inputs))
        inputs = model_files.like_parameters(inputs[own], model)
        data = inputs if labels is None else (inputs, labels[own].to(inputs.device))
        if place.size > 1:
            options["process_group"] = "world"
        initialize = sylvinit.initialize_head_ if arguments.head_only else sylvinit.initialize_
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SylvinitWarning)  # the report has them, and is printed
            report = initialize(model, data, **options)
    if place.rank > 0:
        return
    _say(str(report))
    model_files.save_weights(model, arguments.out)
    _say(f"\nweights: {arguments.out}")
    if arguments.report is not None:
        model_files.write_text(report.to_json(), arguments.report)
        _say(f"report: {arguments.report}")


def _per_pattern(option: str, values: list[str], convert: Callable[[str], T]) -> T | dict[str, T]:
    """One value for all layers, or a value for each pattern of names."""
    if len(values) == 1 and "=" not in values[0]:
        return _number(option, values[0], convert)
    pairs = [value.rpartition("=") for value in values]
    if not all(pattern for pattern, _, _ in pairs):
        raise OptionError(
            f"{option}: expected a single value, or PATTERN=VALUE each time, got {values}."
        )
    return {pattern: _number(option, value, convert) for pattern, _, value in pairs}


def _number(option: str, text: str, convert: Callable[[str], T]) -> T:
    try:
        return convert(text)
    except ValueError as error:
        raise OptionError(f"{option}: expected a number, got {text!r}.") from error


def _add_correlation(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Estimate the correlation matrix of the spatial filters of trained weights, for "
        "sylvinit.correlated_init_."
    )
    parser.set_defaults(run=_correlation)
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


def _correlation(arguments: argparse.Namespace) -> None:
    import sylvinit
    from sylvinit.correlated import correlation_by_distance
    from sylvinit.io import model_files
    from sylvinit.priors.matrix import mean_off_diagonal

    if arguments.out is not None:
        model_files.check_output("--out", arguments.out, ".txt")
    kernel = _kernel(arguments.kernel)
    corr = sylvinit.filter_correlation(arguments.weights, kernel)
    taps = len(corr)
    _say(f"{corr.filters} filters of {corr.units} units in {len(corr.layers)} layers")
    _say(f"mean correlation of two taps {mean_off_diagonal(corr):.3f}")
    if taps <= 9:
        _say("\n".join("  " + "".join(f"{value:7.3f}" for value in row) for row in corr.tolist()))
    profile = correlation_by_distance(corr)
    _say("distance (taps)  correlation  standard error")
    errors = profile.standard_error
    for index, distance in enumerate(profile.distance.tolist()):
        error = "" if errors is None else f"{float(errors[index]):.3f}"
        _say(f"{distance:15.2f}  {float(profile.correlation[index]):11.3f}  {error:>14}")
    if arguments.per_layer:
        layers = sylvinit.filter_correlation(arguments.weights, kernel, per_layer=True)
        width = max(map(len, layers))
        _say("mean correlation of two taps, layer by layer")
        for name, one in layers.items():
            _say(f"  {name:<{width}}  {mean_off_diagonal(one):+.3f}  of {one.filters} filters")
    if arguments.out is not None:
        sylvinit.priors.save(corr, arguments.out, source=arguments.source)
        _say(f"matrix of all layers together: {arguments.out}")


def _kernel(text: str) -> int | tuple[int, ...]:
    """As in Python: "5," is one axis, where "5" stands for 5x5."""
    try:
        sizes = tuple(int(size) for size in text.removesuffix(",").split("x"))
    except ValueError as error:
        raise OptionError(f"--kernel: expected a size as 3x3, 3, or 5, got {text!r}") from error
    return sizes[0] if len(sizes) == 1 and not text.endswith(",") else sizes


def _add_info(parser: argparse.ArgumentParser) -> None:
    parser.description = "Show versions, threads and which backend runs, and why."
    parser.set_defaults(run=_info)


def _info(_: argparse.Namespace) -> None:
    import platform

    import torch

    from sylvinit import backends
    from sylvinit.backends import extension
    from sylvinit.sylvester import lapack

    _say(f"sylvinit {__version__}, Python {platform.python_version()}")
    for package in ("torch", "numpy", "scipy", "scikit-learn", "safetensors", "matplotlib"):
        _say(f"  {package:<14}{_version(package)}")
    _say(f"  {'threads':<14}{torch.get_num_threads()} of {os.cpu_count()} processors")
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    _say(f"  {'GPUs':<14}{', '.join(gpus) or 'none'}")
    _say("CUDA extension")
    _say(f"  {'build':<14}{extension.description()}")
    reason = extension.reason()
    _say(f"  {'runs here':<14}{f'no: {reason}' if reason else 'yes'}")
    _say(f"  {'verification':<14}{extension.verification()}")
    _say("backends, in the order in which they are tried")
    for row in backends.table():
        state = "runs" if row.available else "does not run"
        _say(f"  {row.name:<8}{state:<14}{'/'.join(row.devices):<8}{row.reason}")
    _say("solve_sylvester")
    _say(f"  {'on the CPU':<14}{lapack.description()}")
    _say(f"  {'on a GPU':<14}Hermitian equations by the first backend that runs, others on the CPU")


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")


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
