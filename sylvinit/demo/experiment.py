"""A network's own start, the same with a solved head, and sylvinit: before and during training."""

from __future__ import annotations

import copy
import dataclasses
import logging
import statistics
import time
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

import sylvinit
from sylvinit.checks import check_count
from sylvinit.demo.training import accuracy, calibrate_norm, train
from sylvinit.errors import ModelError, OptionError, SylvinitWarning
from sylvinit.io.datasets import Samples, few_per_class

if TYPE_CHECKING:
    from sylvinit.demo.tasks import Task

logger = logging.getLogger(__name__)

PRESET = "auto"
OWN, HEAD, SYLVINIT = "own start", "solved head", f'preset "{PRESET}"'
METHODS = (OWN, HEAD, SYLVINIT)

_VIEWED_SAMPLES = 400  # enough to see clusters, few enough to tell dots apart


@dataclass(frozen=True)
class Run:
    """One network, initialized by one method and trained once.

    Attributes:
        method: one of ``METHODS``.
        seed: of the choice of samples, of the own start and of the order of training.
        accuracy: from 0 to 1: before training and after each epoch.
        init_seconds: for weights and batch norm statistics.
        train_seconds: for all epochs, without evaluation.
        start: which one preset "auto" chose; empty for the other methods.
    """

    method: str
    seed: int
    accuracy: list[float]
    init_seconds: float
    train_seconds: float
    start: str = ""


@dataclass(frozen=True)
class View:
    """What one network looks like before training, for the picture only.

    Attributes:
        filters: weight of the first convolution (c_out, c_in, kh, kw).
        features, labels: inputs of the last layer for some test samples (n, d), and theirs (n,).
    """

    filters: Tensor
    features: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Summary:
    """Mean and standard deviation over the seeds, in per cent, and mean seconds."""

    method: str
    before: tuple[float, float]
    after: tuple[float, float]
    init_seconds: float


@dataclass(frozen=True)
class Result:
    """What the experiment measured; ``views`` are the first seed's, and not in :meth:`to_dict`."""

    task: dict[str, Any]
    runs: list[Run]
    seconds: float
    views: dict[str, View]

    def curves(self, method: str) -> list[list[float]]:
        """The accuracies of one method, a list for each seed."""
        return [run.accuracy for run in self.runs if run.method == method]

    def summary(self) -> list[Summary]:
        """The ends of the curves, one row for each method."""
        rows: list[Summary] = []
        for method in METHODS:
            runs = [run for run in self.runs if run.method == method]
            before, after = (
                _mean_std([100 * run.accuracy[end] for run in runs]) for end in (0, -1)
            )
            seconds = statistics.fmean(run.init_seconds for run in runs)
            rows.append(Summary(method, before, after, seconds))
        return rows

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for ``json.dumps``."""
        return {
            "task": self.task,
            "environment": {
                "sylvinit": sylvinit.__version__,
                "torch": torch.__version__,
                "threads": torch.get_num_threads(),
            },
            "seconds": self.seconds,
            "summary": [dataclasses.asdict(row) for row in self.summary()],
            "runs": [dataclasses.asdict(run) for run in self.runs],
        }


def run_experiment(task: Task, seeds: int = 3, epochs: int | None = None) -> Result:
    """Compare the three methods on ``task``, with the seeds 0, 1, ...

    For each seed the three networks share the training samples, the order of the batches and, as
    far as they keep it, the own start. Batch norm has the statistics of all training samples at
    every evaluation, whatever the method, so that no curve suffers from running averages that lag.
    A bar is shown on terminals. The global random state is left as it was.

    ``epochs`` replaces those of the task; 0 measures the untrained networks only.

    Raises:
        OptionError: ``seeds`` below 1 or ``epochs`` below 0.
        ModelError: the network has no convolution or no layer that classifies.
    """
    seeds = check_count("seeds", seeds)
    epochs = task.epochs if epochs is None else epochs
    if epochs < 0:
        raise OptionError(f"epochs: expected at least 0, got {epochs}.")
    start = time.perf_counter()
    runs: list[Run] = []
    views: dict[str, View] = {}
    steps = seeds * len(METHODS) * (epochs + 1)
    with (
        tqdm(total=steps, desc="demo", unit="epoch", disable=None) as bar,
        torch.random.fork_rng(devices=[]),  # networks are built, and may have dropout
    ):
        for seed in range(seeds):
            indices = few_per_class(task.pool.labels, task.per_class, seed)
            samples = Samples(task.pool.inputs[indices], task.pool.labels[indices])
            own = task.make(seed)
            for method in METHODS:
                model = copy.deepcopy(own)
                tick = time.perf_counter()
                chosen = _initialize(method, model, samples, task, seed)
                init_seconds = time.perf_counter() - tick
                if seed == 0:
                    views[method] = _view(model, samples, task.test)
                curve, train_seconds = _curve(model, samples, task, epochs, seed, bar)
                bar.clear()
                logger.info(
                    "seed %d, %-14s  before training %5.1f %%, after %d epochs %5.1f %%",
                    *(seed, method, 100 * curve[0], epochs, 100 * curve[-1]),
                )
                runs.append(Run(method, seed, curve, init_seconds, train_seconds, chosen))
    description = {
        "name": task.name,
        "network": task.network,
        "start": task.start,
        "classes": list(task.class_names),
        "train_samples_per_class": task.per_class,
        "test_samples": len(task.test.labels),
        "test_samples_between": min(task.probe, len(task.test.labels)),
        "epochs": epochs,
        "seeds": list(range(seeds)),
        "recipe": dataclasses.asdict(task.recipe),
    }
    return Result(description, runs, time.perf_counter() - start, views)


def _initialize(method: str, model: nn.Module, samples: Samples, task: Task, seed: int) -> str:
    """Initialize ``model``, which has its own start, and return which start was chosen."""
    if method != SYLVINIT:
        calibrate_norm(model, samples.inputs)
    with warnings.catch_warnings():
        # Few samples are the point of the demo: that they are few is no news.
        warnings.simplefilter("ignore", SylvinitWarning)
        if method == SYLVINIT:
            report = sylvinit.initialize_(
                *(model, samples),
                preset=PRESET,
                seed=seed,
                microbatch=task.microbatch,
                progress=False,
            )
            return next((found.name for found in report.candidates if found.chosen), "")
        if method == HEAD:
            sylvinit.initialize_head_(
                model, samples, seed=seed, microbatch=task.microbatch, progress=False
            )
    return ""


def _curve(
    model: nn.Module, samples: Samples, task: Task, epochs: int, seed: int, bar: tqdm
) -> tuple[list[float], float]:
    """Accuracies before training and after each epoch, and the seconds of the training."""
    probe = Samples(task.test.inputs[: task.probe], task.test.labels[: task.probe])
    curve = [accuracy(model, task.test)]
    bar.update()
    train_seconds = 0.0
    torch.manual_seed(seed)  # of dropout
    tick = time.perf_counter()
    for epoch in train(model, samples, task.recipe, epochs, seed):
        train_seconds += time.perf_counter() - tick
        calibrate_norm(model, samples.inputs)
        curve.append(accuracy(model, task.test if epoch == epochs else probe))
        bar.update()
        tick = time.perf_counter()
    return curve, train_seconds


@torch.no_grad()
def _view(model: nn.Module, samples: Samples, test: Samples) -> View:
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    few = Samples(samples.inputs[:2], samples.labels[:2])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SylvinitWarning)  # two samples have few classes
        head = sylvinit.initialize_head_(model, few, dry_run=True).head
    if not convolutions or head is None:
        raise ModelError("model: the demo shows networks with a convolution and a last layer")
    features: list[Tensor] = []
    shown = torch.randperm(len(test.labels), generator=torch.Generator().manual_seed(0))
    shown = shown[:_VIEWED_SAMPLES]
    layer = model.get_submodule(head)
    with layer.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0].clone())):
        model.eval()
        model(test.inputs[shown])
    return View(convolutions[0].weight.detach().clone(), features[0], test.labels[shown])


def _mean_std(values: list[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (0 for a single value)."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0
