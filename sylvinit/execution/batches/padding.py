"""Which tokens of a batch are padding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sylvinit.errors import DataError, OptionError
from sylvinit.execution.batches.values import tensors_in
from sylvinit.options import PaddingMask


class Padding:
    """Finds the padding mask of every batch: the one asked for, or the attention_mask.

    Args:
        asked: name of an input or a function of the inputs; None for ``attention_mask``, if that
            is there and has a row of tokens for each sample.
    """

    def __init__(self, asked: PaddingMask | None = None) -> None:
        self._asked = asked
        self.warning: str | None = None  # on an input that looks like a mask and is not used

    def mask(self, inputs: Any, named: Mapping[str, Any], size: int, start: int) -> Tensor | None:
        """Bool (samples, length) on the CPU, True for real tokens, or None.

        Args:
            inputs: of a batch of ``size`` samples, the first of which has the index ``start``.
            named: those of them that have names.

        Raises:
            OptionError: the name asked for is no input.
            DataError: what is there is no mask.
        """
        if self._asked is None:
            mask = named.get("attention_mask") if isinstance(inputs, Mapping) else None
            # A 3-D or 4-D mask says which token sees which, not which tokens are padding.
            if isinstance(mask, Tensor) and mask.ndim == 2 and len(mask) == size:
                return (mask != 0).cpu()
            if self.warning is None:
                self._look_for_unused(named, size)
            return None
        name, asked = "", self._asked
        if isinstance(asked, str):
            name = asked
            if name not in named:
                raise OptionError(
                    f"padding_mask={name!r} names no input: these are {', '.join(named) or 'none'}"
                    "; name one of them, or pass a function of the inputs"
                )
            mask = named[name]
        else:
            mask = asked(inputs)
        return _read(mask, name, inputs, size, start)

    def _look_for_unused(self, named: Mapping[str, Any], size: int) -> None:
        for name, x in named.items():
            others = [y for other, y in named.items() if other != name]
            if isinstance(x, Tensor) and _looks_like_padding(name, x, tensors_in(others), size):
                self.warning = (
                    f"the input {name} looks like a padding mask and is not used, so that layers "
                    f"are solved from padding tokens, too; pass padding_mask={name!r} if it is one "
                    "(or a function of the inputs)"
                )
                return


def _looks_like_padding(name: str, x: Tensor, others: list[Tensor], size: int) -> bool:
    """Whether x marks some of the tokens that another input has, by dtype or by name."""
    if not x.ndim or len(x) != size or x.numel() == 0 or bool((x == x.flatten()[0]).all()):
        return False
    lengths = {length for y in others if y.ndim > 1 and len(y) == size for length in y.shape[1:]}
    if x.ndim == 2:
        return x.shape[1] in lengths and (x.dtype == torch.bool or "mask" in name)
    whole = not (x.is_floating_point() or x.is_complex() or x.dtype == torch.bool)
    return x.ndim == 1 and whole and "len" in name and int(x.max()) <= max(lengths, default=0)


def _read(mask: Any, name: str, inputs: Any, size: int, start: int) -> Tensor:
    what = f"padding_mask={name!r}" if name else "what padding_mask= returned"
    if isinstance(mask, (np.ndarray, list)):
        mask = torch.as_tensor(mask)
    if not isinstance(mask, Tensor):
        raise DataError(f"{what} must be a tensor, got {type(mask).__name__}")
    mask = mask.detach().cpu()
    whole = not (mask.is_floating_point() or mask.is_complex() or mask.dtype == torch.bool)
    if mask.shape == (size,) and whole:
        return _from_lengths(mask, what, inputs, size, start)
    if mask.ndim != 2 or len(mask) != size:
        raise DataError(
            f"{what} must have shape (samples, length), or be integers of shape (samples,), the "
            f"lengths; got {mask.dtype} {tuple(mask.shape)} for {size} samples (batch at sample "
            f"{start})"
        )
    if name.endswith("padding_mask"):  # torch.nn's and fairseq's, True where padding is
        return mask == 0
    if bool((mask < 0).any()):
        remedy = "what is true at real tokens, as in mask == 0"
        if name and isinstance(inputs, Mapping):
            remedy = f"padding_mask=lambda inputs: inputs[{name!r}] == 0"
        raise DataError(
            f"{what} holds negative numbers, as a mask does that is added to attention scores; "
            f"give {remedy}"
        )
    return mask != 0


def _from_lengths(lengths: Tensor, what: str, inputs: Any, size: int, start: int) -> Tensor:
    longest = int(lengths.max()) if size else 0
    axes = [x.shape[1] for x in tensors_in(inputs) if x.ndim > 1 and len(x) == size]
    if not axes or longest > axes[0] or int(lengths.min()) < 0:
        raise DataError(
            f"{what} must be lengths of samples, from 0 to the length of the first input "
            f"(samples, length, ...), which is {axes[0] if axes else 'missing'}; got up to "
            f"{longest} (batch at sample {start}). Pass a function that returns bool (samples, "
            "length)"
        )
    return torch.arange(axes[0]) < lengths[:, None]
