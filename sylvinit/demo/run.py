"""The whole demo: experiment, picture and numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from sylvinit.demo.experiment import Result, run_experiment
from sylvinit.demo.picture import draw
from sylvinit.demo.tasks import cifar10_task, digits_task, image_task
from sylvinit.errors import OptionError
from sylvinit.report.drawing import require_matplotlib

if TYPE_CHECKING:
    from os import PathLike


class DemoResult(NamedTuple):
    """What the demo measured and where it wrote that."""

    result: Result
    picture: Path
    numbers: Path


def run_demo(
    out: str | PathLike[str],
    data: str | PathLike[str] | None = None,
    seeds: int = 3,
    epochs: int | None = None,
    *,
    model: str | None = None,
    size: int = 64,
) -> DemoResult:
    """Run the experiment and write ``sylvinit-demo.png`` and ``sylvinit-demo.json``.

    Args:
        out: folder to write to, made where it does not exist.
        data: a ``cifar-10-batches-py`` folder, or the one that contains it, for ResNet-20 on
            CIFAR-10; with ``model`` a folder of images in folders of their classes. None takes
            scikit-learn's digits and a small network.
        seeds, epochs: repetitions, and epochs of training; None takes those of the task.
        model: "timm:NAME", for a folder of images.
        size: of these images, in pixels.

    Raises:
        MissingMatplotlibError: matplotlib is not installed; nothing has been computed then.
        DataError: the data are missing or damaged.
        OptionError: ``seeds``, ``epochs`` or ``size`` out of range, no such model, a model without
            data, or ``out`` is not a folder to write to.
        ModelError: the demo cannot show such a network.
    """
    require_matplotlib("the demo's figure")
    folder = Path(out)
    if model is not None and data is None:
        raise OptionError("model: expected a folder of images in folders of their classes as data.")
    if data is None:
        task = digits_task()
    else:
        task = cifar10_task(data) if model is None else image_task(model, data, size)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OptionError(f"out: expected a folder that can be written to, got {error}.") from error
    result = run_experiment(task, seeds, epochs)
    picture, numbers = folder / "sylvinit-demo.png", folder / "sylvinit-demo.json"
    try:
        numbers.write_text(json.dumps(result.to_dict(), indent=2) + "\n", encoding="utf-8")
        draw(result, picture)
    except OSError as error:
        raise OptionError(f"out: cannot write there: {error}.") from error
    return DemoResult(result, picture, numbers)
