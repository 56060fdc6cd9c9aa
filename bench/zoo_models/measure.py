"""What initialize_ does to one model, as a row of plain values."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, ValuesView
from typing import Any

import torch
from torch import Tensor, nn

import sylvinit

from . import library
from .case import Case, NotBuiltError, TooLargeError, parameter_count

_LISTS = (list, tuple, ValuesView)


def measure(
    name: str, most_parameters: int, built: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """Build the model ``library/name``, call ``built``, run it, initialize it.

    The row's "status" is "too large", "not built", "forward fails" (without sylvinit), "refused"
    (an error of sylvinit's), "failed" (any other error) or "initialized".
    """
    torch.manual_seed(0)
    row: dict[str, Any] = {"name": name}
    source, model_name = name.split("/", 1)
    try:
        case = library(source).build(model_name, most_parameters)
    except TooLargeError as error:
        return row | {"status": "too large", "error": str(error)}
    except NotBuiltError as error:
        return row | {"status": "not built", "error": str(error)[:400]}
    except Exception as error:  # whatever a library's constructor raises
        return row | {"status": "not built", "error": _text(error)}
    built()
    row["parameters"] = parameter_count(case.model)
    try:
        row["forward_seconds"] = _forward_seconds(case)
    except Exception as error:  # whatever a model's forward raises
        return row | {"status": "forward fails", "error": _text(error)}
    case.model.train()
    return row | _initialize(case)


def _text(error: BaseException) -> str:
    notes = " | ".join(getattr(error, "__notes__", []))
    return f"{type(error).__name__}: {error} {notes}".strip()[:1200]


def _forward_seconds(case: Case, repeats: int = 3) -> float:
    case.model.eval()
    times = []
    with torch.no_grad():
        for _ in range(repeats):
            begin = time.perf_counter()
            case.forward()
            times.append(time.perf_counter() - begin)
    return min(times)


def _initialize(case: Case) -> dict[str, Any]:
    before = _state(case.model)
    begin = time.perf_counter()
    try:
        report = sylvinit.initialize_(
            case.model, case.data, preset="best", forward_fn=case.forward_fn
        )
    except Exception as error:  # an error of another type is what this looks for
        refused = isinstance(error, sylvinit.SylvinitError)
        return {
            "status": "refused" if refused else "failed",
            "error": _text(error),
            "seconds": time.perf_counter() - begin,
            "restored": _equal(before, _state(case.model)),
        }
    row: dict[str, Any] = {"status": "initialized", "seconds": time.perf_counter() - begin}
    row["counts"] = dict(Counter(layer.status for layer in report.layers))
    row["skipped"] = {
        layer.title: f"{layer.kind}: {layer.reason}"
        for layer in report.layers
        if layer.status == "skipped"
    }
    row |= _head(report)
    row["warnings"] = [text[:400] for text in report.warnings]
    row |= _largest(case.model, before)
    try:
        row |= _after(case)
    except Exception as error:  # what initialize_ may have done to a forward
        row["after"] = _text(error)
    return row


def _head(report: sylvinit.Report) -> dict[str, Any]:
    if report.head is None:
        return {"head": None}
    head = report[report.head]
    return {"head": head.name, "head_status": head.status, "head_code": head.code or head.reason}


def _after(case: Case) -> dict[str, Any]:
    """Whether outputs are finite, and the accuracy on the samples themselves."""
    case.model.eval()
    with torch.no_grad():
        output = case.forward()
    row: dict[str, Any] = {"finite": all(bool(x.isfinite().all()) for x in _tensors(output))}
    if case.labels is not None:
        scores = next(x for x in _tensors(output) if x.shape[:1] == case.labels.shape)
        row["accuracy"] = (scores.argmax(-1) == case.labels).float().mean().item()
    return row


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value] if value.is_floating_point() else []
    items = value.values() if isinstance(value, Mapping) else value
    return [x for item in items for x in _tensors(item)] if isinstance(items, _LISTS) else []


def _state(model: nn.Module) -> dict[str, Tensor]:
    return {
        name: tensor.detach().clone()
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]
    }


def _equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(first[name].nan_to_num(), second[name].nan_to_num()) for name in first
    )


def _largest(model: nn.Module, before: dict[str, Tensor]) -> dict[str, Any]:
    """The largest entry among weights that were written, and what it was in the network's start."""
    largest, place = 0.0, ""
    for name, weight in model.named_parameters():
        if name in before and weight.numel() and not torch.equal(weight, before[name]):
            size = weight.detach().abs().max().item()
            if size > largest or math.isnan(size):
                largest, place = size, name
    own = before[place].abs().max().item() if place else 0.0
    return {"largest": largest, "largest_in": place, "largest_before": own}
