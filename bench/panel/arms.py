"""The starts that are compared, by name. A further one is a function and a line of ``ARMS``."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import sylvinit
from sylvinit.demo.training import calibrate_norm
from sylvinit.io.datasets import Samples

OWN, BEST, AUTO = "own", "best", "auto"
Arm = Callable[[nn.Module, Samples, int], "sylvinit.Report | None"]


def _own(model: nn.Module, samples: Samples, seed: int) -> None:
    """The network as it came."""


def _preset(name: str) -> Arm:
    return lambda model, samples, seed: _initialize(model, samples, seed, name)


def _initialize(model: nn.Module, samples: Samples, seed: int, preset: Any) -> sylvinit.Report:
    return sylvinit.initialize_(model, samples, preset=preset, seed=seed, progress=False)


def _own_head(model: nn.Module, samples: Samples, seed: int) -> sylvinit.Report:
    """The own body with statistics of batch norm from the samples, and a solved head."""
    calibrate_norm(model, samples.inputs)
    return sylvinit.initialize_head_(model, samples, seed=seed, progress=False)


def _best_body(model: nn.Module, samples: Samples, seed: int) -> sylvinit.Report:
    """ "best", with the own head put back."""
    own = copy.deepcopy(model)
    report = _initialize(model, samples, seed, BEST)
    if report.head is None:
        raise LookupError("best-body: the network has no head to put back")
    model.get_submodule(report.head).load_state_dict(own.get_submodule(report.head).state_dict())
    return report


def _best_norms(model: nn.Module, samples: Samples, seed: int) -> sylvinit.Report:
    """ "best", with every row of every weight, and its bias, scaled to the norm of the own row."""
    own = copy.deepcopy(model)
    report = _initialize(model, samples, seed, BEST)
    scale_rows(model, own)
    calibrate_norm(model, samples.inputs)  # running statistics are those of the rows before
    return report


def _first(model: nn.Module, samples: Samples, seed: int) -> sylvinit.Report:
    """The first layer and the head from the data: of a ViT, the embedding of patches."""
    plan = sylvinit.initialize_(model, samples, preset="best", dry_run=True)
    layers = [layer.name for layer in plan.layers if layer.status == "planned"]
    include = [layers[0], *([plan.head] if plan.head else [])]
    return sylvinit.initialize_(
        model, samples, preset="best", include=include, seed=seed, progress=False
    )


def _mimetic(model: nn.Module, samples: Samples, seed: int) -> sylvinit.Report:
    """Mimetic attention (Trockman and Kolter 2023, section 3), and a solved head.

    In every head W_q^T W_k = 0.7 Z + 0.7 I, cut to the head's rank, and in every attention
    W_proj W_v = 0.4 Z - 0.4 I, with Z normal of variance 1 / d.
    """
    _make_all_mimetic(model, seed)
    return sylvinit.initialize_head_(model, samples, seed=seed, progress=False)


def _mimetic_best(model: nn.Module, samples: Samples, seed: int) -> sylvinit.Report:
    """Mimetic attention, and "best" for all other layers."""
    kept = [f"{name}.{part}" for name in _make_all_mimetic(model, seed) for part in ("qkv", "proj")]
    return sylvinit.initialize_(
        model, samples, preset="best", exclude=kept, seed=seed, progress=False
    )


def _make_all_mimetic(model: nn.Module, seed: int) -> list[str]:
    generator = torch.Generator().manual_seed(seed)
    modules = dict(model.named_modules())
    found = [n for n, x in modules.items() if hasattr(x, "qkv") and hasattr(x, "num_heads")]
    if not found:
        raise LookupError("mimetic: the network has no attention with a qkv projection")
    with torch.no_grad():
        for name in found:
            make_mimetic(modules[name], generator)
    return found


def make_mimetic(attention: Any, generator: torch.Generator) -> None:
    """Write the weights of one attention module (qkv, proj, num_heads)."""
    d, heads = attention.qkv.in_features, attention.num_heads
    q, k, v = attention.qkv.weight.chunk(3)

    def product(noise: float, identity: float) -> tuple[Tensor, Tensor]:
        z = torch.randn(d, d, generator=generator, dtype=torch.float64) * d**-0.5
        left, values, right = torch.linalg.svd(noise * z + identity * torch.eye(d).double())
        return left * values.sqrt(), values.sqrt()[:, None] * right

    for head in range(heads):
        left, right = product(0.7, 0.7)
        rows = slice(head * d // heads, (head + 1) * d // heads)
        q[rows].copy_(left[:, : d // heads].mT)
        k[rows].copy_(right[: d // heads])
    left, right = product(0.4, -0.4)
    attention.proj.weight.copy_(left)
    v.copy_(right)


@torch.no_grad()
def scale_rows(model: nn.Module, example: nn.Module) -> None:
    """Give rows of weights the norms that they have in another network of the same modules."""
    parameters, examples = dict(model.named_parameters()), dict(example.named_parameters())
    for name, weight in parameters.items():
        if weight.ndim < 2 or not name.endswith("weight"):
            continue
        size, wanted = _row_norms(weight), _row_norms(examples[name])
        factor = torch.where(size > 0, wanted / size, 1.0)
        weight.mul_(factor.view(-1, *[1] * (weight.ndim - 1)))
        bias = parameters.get(name.removesuffix("weight") + "bias")
        if bias is not None:
            bias.mul_(factor)


def _row_norms(weight: Tensor) -> Tensor:
    return weight.flatten(1).norm(dim=1)


ARMS: dict[str, Arm] = {
    OWN: _own,
    BEST: _preset(BEST),
    AUTO: _preset(AUTO),
    "own+head": _own_head,
    "best-body": _best_body,
    "best-norms": _best_norms,
    "first": _first,
    "mimetic": _mimetic,
    "mimetic+best": _mimetic_best,
}


def apply(name: str, model: nn.Module, samples: Samples, seed: int) -> dict[str, Any]:
    """Initialize a network in place by the arm of that name.

    Returns:
        How many warnings the report has, and the candidates and the choice of a gate.
    """
    with warnings.catch_warnings():
        # That there are few samples is the point of the panel.
        warnings.simplefilter("ignore", sylvinit.SylvinitWarning)
        report = ARMS[name](model, samples, seed)
    if report is None:
        return {"warnings": 0}
    found: dict[str, Any] = {"warnings": len(report.warnings)}
    candidates = report.to_dict().get("candidates") or []
    if candidates:
        found["candidates"] = candidates
        found["choice"] = next(item["name"] for item in candidates if item["chosen"])
    return found
