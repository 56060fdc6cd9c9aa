"""Whether the network reads nothing of its head's output but the last token of every sample.

Sequence classifiers on decoders apply their head to all tokens and return the row of the last one
that is no padding. The other rows never reach the output. Seen by putting NaN in their places.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from sylvinit.execution.batches import Batch
from sylvinit.execution.guard import CallerModes, ModelGuard, forward_modes, same_random_numbers
from sylvinit.execution.survey import SURVEY_SAMPLES, Survey
from sylvinit.model import Layer


def last_tokens(mask: Tensor | None, samples: int, length: int) -> Tensor:
    """The last token of every sample that is no padding, bool (samples, length)."""
    if mask is None or mask.shape != (samples, length):
        mask = torch.ones(samples, length, dtype=torch.bool)
    places = torch.where(mask.bool().cpu(), torch.arange(length), -1).amax(dim=1, keepdim=True)
    return torch.arange(length) == places


def has_tokens(survey: Survey, layer: Layer, labels: Tensor | None) -> bool:
    """Whether a layer has several rows a sample, (samples, tokens, features), and labels none."""
    shape = survey.shapes.get(id(layer), ())
    tokens = layer.geometry is None and len(shape) == 3 and shape[0] == survey.samples
    once = survey.calls[layer.module] == 1 and len(survey.points[layer.module]) == 1
    per_sample = labels is not None and (labels.ndim == 1 or labels.shape[1:] == (1,))
    return tokens and shape[1] > 1 and once and per_sample


def reads_last_tokens(
    layer: Layer,
    batches: list[Batch],
    call: Callable[[Batch], Any],
    caller: CallerModes,
    guard: ModelGuard,
) -> bool:
    """Whether only the last tokens of a layer's output reach that of the model.

    Run on two samples twice, with NaN in all other rows and then in those: one of the samples has
    more padding than any other, or where no mask tells, seems to.
    """
    batch = _with_most_padding(batches)

    def reaches(last: bool) -> bool:
        seen = False

        def spoiled(module: nn.Module, args: Any, kwargs: Mapping[str, Any], output: Any) -> Any:
            nonlocal seen
            seen = True
            rows = last_tokens(batch.mask, batch.size, output.shape[1]).to(output.device)
            return output.masked_fill((rows == last)[:, :, None], torch.nan)

        with ExitStack() as stack:
            stack.callback(guard.restore_forward)
            handle = layer.module.register_forward_hook(spoiled, with_kwargs=True)
            stack.callback(handle.remove)
            stack.enter_context(same_random_numbers())
            stack.enter_context(forward_modes(caller))
            output = call(batch)
        floats = [x for x in _tensors(output) if x.is_floating_point()]
        if not (seen and floats):
            raise ValueError("the model gives no numbers")
        return any(bool(x.isnan().any()) for x in floats)

    try:
        return not reaches(last=False) and reaches(last=True)
    except Exception:  # a model that checks its output, or takes no two samples
        return False


def _with_most_padding(batches: list[Batch]) -> Batch:
    counts = [_paddings(batch) for batch in batches]
    index = max(range(len(batches)), key=lambda i: float(counts[i].max()))
    batch, most = batches[index], int(counts[index].argmax())
    least = int(counts[index].argmin())
    chosen = batch.replaced({0: most, 1: least} if batch.size > 1 else {})
    return chosen.head(SURVEY_SAMPLES)


def _paddings(batch: Batch) -> Tensor:
    """How many tokens of each sample are padding, or seem to be where no mask tells.

    Those are the ones that equal the last, and more likely so where others end alike.
    """
    if batch.mask is not None:
        return (~batch.mask.bool()).sum(dim=1).double()
    tokens = [x for x in batch.tensors() if x.ndim == 2 and len(x) == batch.size]
    tokens = [x for x in tokens if not (x.is_floating_point() or x.is_complex()) and x.numel()]
    found = torch.zeros(batch.size, dtype=torch.float64)
    for x in tokens:
        same = (x == x[:, -1:]).flip(1).long().cumprod(dim=1).sum(dim=1).cpu()
        if int(same.max()) < x.shape[1]:  # else it is one number for all, such as a type
            alike = (x[:, -1:] == x[:, -1]).double().mean(dim=1).cpu()
            found = torch.maximum(found, same + alike)
    return found


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    # Not what is kept for the next tokens: only what the caller reads first.
    return [x for x in value if isinstance(x, Tensor)] if isinstance(value, (tuple, list)) else []
