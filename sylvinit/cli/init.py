"""``sylvinit init``."""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from sylvinit.cli.output import say
from sylvinit.errors import OptionError, SylvinitWarning

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

T = TypeVar("T")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Description, options and function of the subcommand."""
    parser.description = (
        "Build a model, compute its weights from data, and write them as a safetensors file. "
        "safetensors.torch.load_model reads it, tied weights included."
    )
    parser.set_defaults(run=run)
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
    add(
        "--out",
        metavar="FILE.safetensors",
        required=True,
        type=Path,
        help="where to write the weights",
    )
    add("--report", metavar="FILE.json", type=Path, help="write the report there")
    add("--weights", metavar="FILE", type=Path, help="start from these weights (.safetensors, .pt)")
    add("--head-only", action="store_true", help="solve the classifier alone")
    add(
        "--preset",
        choices=["auto", "best", "paper", "frozen"],
        help="auto (default): the network's own start or best, whichever serves a head better; "
        "best: for networks that will be trained; paper: the same without scaled rows; frozen: for "
        "hidden layers that will not be trained",
    )
    add(
        "--code",
        action="append",
        metavar="[PATTERN=]CODE",
        help="pca, lda, ica, kmeans, discriminant, correlated, one of them with -pairs, onehot; "
        "repeatable, with a pattern of layer names each",
    )
    add(
        "--lam",
        action="append",
        metavar="[PATTERN=]LAMBDA",
        help="weight of the encoding loss (default 10); repeatable as --code",
    )
    add("--head", metavar="NAME", help="the classifier; default: the last layer executed")
    add(
        "--head-code",
        metavar="CODE",
        help="code of the head: onehot (the default for classes), targets (for floats), pca, ...; "
        "with --head-only also logistic and ridge, the more accurate ones on pretrained features",
    )
    add("--patches", metavar="N|all", help="patches to draw from each sample")
    add(
        "--include",
        action="append",
        metavar="PATTERN",
        help="only layers whose names match; repeatable",
    )
    add("--exclude", action="append", metavar="PATTERN", help="leave these layers out; repeatable")
    add("--microbatch", metavar="N", type=int, help="samples in one forward pass")
    add("--max-samples", metavar="N", type=int, help="use the first N samples at most")
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
    add("--ignore-index", metavar="N", type=int, help="the label of unlabeled rows (default -100)")
    add(
        "--balance",
        action="store_true",
        default=None,
        help="let all classes count alike in the head",
    )
    add("--backend", metavar="NAME", help="auto (default), cpu, torch or cuda")
    add("--device", metavar="DEVICE", help="where to compute, such as cuda:0")
    add("--seed", metavar="N", type=int, help="seed of patch positions and codes (default 0)")
    parser.epilog = (
        "Under torchrun every process takes its part of the rows, and one writes the weights: "
        "torchrun --nproc-per-node 4 -m sylvinit init ..."
    )


# What is not an argument of initialize_ or initialize_head_, and what is one of initialize_ alone.
_OWN = {"run", "verbose", "model", "data", "out", "report", "weights", "head_only", "device"}
_NOT_OF_HEADS = {"preset", "code", "include", "exclude", "rescale", "branch_gain"}


def run(arguments: argparse.Namespace) -> None:
    """Initialize, say what was done, and write the weights."""
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
        raise OptionError(
            f"{', '.join(extra)}: not with --head-only, which solves a single layer; leave out one "
            "or the other."
        )

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
        if place.rank == 0:
            say(
                f"{arguments.model}: {sum(x.numel() for x in model.parameters()):,} parameters\n"
                f"{arguments.data}: {len(inputs):,} samples of {_shape(inputs)}, "
                f"{_labels(labels)}\n"
            )
            sys.stdout.flush()  # before the bar, which is on the other stream
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
    say(str(report))
    model_files.save_weights(model, arguments.out)
    say(f"\nweights: {arguments.out}")
    if arguments.report is not None:
        model_files.write_text(report.to_json(), arguments.report)
        say(f"report: {arguments.report}")


def _shape(samples: Tensor) -> str:
    """That of one sample, and the type of its numbers."""
    size = " x ".join(map(str, samples.shape[1:])) or "one number"
    return f"{size} ({str(samples.dtype).removeprefix('torch.')})"


def _labels(labels: Tensor | None) -> str:
    if labels is None:
        return "no labels"
    classes = labels.ndim == 1 and not labels.is_floating_point()
    return f"{len(labels.unique())} classes" if classes else f"labels of {_shape(labels)}"


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
