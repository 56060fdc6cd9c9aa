"""``sylvinit demo``."""

from __future__ import annotations

import argparse

from sylvinit.cli.output import say


def add_options(parser: argparse.ArgumentParser) -> None:
    """Description, options and function of the subcommand."""
    parser.description = (
        "Compare a network's own start, the same with a solved head, and sylvinit, before and "
        "during the same training. Writes sylvinit-demo.png and sylvinit-demo.json. Without "
        "options: scikit-learn's digits and a small network (seconds)."
    )
    parser.set_defaults(run=run)
    parser.add_argument(
        "--data",
        metavar="DIR",
        help="a cifar-10-batches-py folder: ResNet-20, 100 images a class (minutes); with --model "
        "a folder that has a folder of images for each class, or train and test with these",
    )
    parser.add_argument(
        "--model", metavar="timm:NAME", help="a model of timm, such as timm:resnet18; needs --data"
    )
    parser.add_argument(
        "--size",
        metavar="N",
        type=int,
        default=64,
        help="resize images to N x N pixels, with --model (default 64)",
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        default="sylvinit-demo",
        help="folder for the picture and the numbers (default: %(default)s)",
    )
    parser.add_argument(
        "--seeds", metavar="N", type=int, default=3, help="number of repetitions (default: 3)"
    )
    parser.add_argument(
        "--epochs",
        metavar="N",
        type=int,
        help="epochs of training (default: 15 for digits, 5 for CIFAR-10, 10 with --model)",
    )


def run(arguments: argparse.Namespace) -> None:
    """Run the experiment and say what it found."""
    from sylvinit.demo.run import run_demo

    result, picture, numbers = run_demo(
        *(arguments.out, arguments.data, arguments.seeds, arguments.epochs),
        model=arguments.model,
        size=arguments.size,
    )
    task = result.task
    say(
        f"{task['name']}: {task['network']}, {task['train_samples_per_class']} training images per "
        f"class, {task['test_samples']} test images; own start: {task['start']}\n"
        f"test accuracy in %, mean and standard deviation over seeds ({len(task['seeds'])}); "
        f"{result.seconds:.0f} s in all\n"
    )
    after = f"after {task['epochs']} epochs"
    say(f"{'':<18}{'before training':>18}{after:>18}{'initialization':>18}")
    for row in result.summary():
        before, trained = (f"{mean:.1f} ± {std:.1f}" for mean, std in (row.before, row.after))
        seconds = f"{row.init_seconds:.2f} s"
        say(f"{row.method:<18}{before:>18}{trained:>18}{seconds:>18}")
    starts = ", ".join(run.start for run in result.runs if run.start)
    say(f"\nauto chose, seed by seed: {starts}")
    say(f"\npicture: {picture}\nnumbers: {numbers}")
