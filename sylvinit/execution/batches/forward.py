"""What the model is called with, by the signature of its forward."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from inspect import Parameter
from typing import Any

import torch
from torch import Tensor, nn

from sylvinit.errors import DataError
from sylvinit.execution.batches.batch import Batch
from sylvinit.execution.batches.labels import LABEL_KEYS
from sylvinit.execution.batches.values import map_tensors
from sylvinit.options import ForwardFn

# Names that encoder-decoder models share. Their decoders read the labels, shifted by one token,
# where they are given nothing else.
_DECODER_INPUTS = ("decoder_input_ids", "decoder_inputs_embeds")


class Forward:
    """Runs a model on batches.

    It is given copies of their inputs on its device, because it may work in place and a batch may
    be needed again.
    """

    def __init__(
        self, model: nn.Module, device: torch.device, forward_fn: ForwardFn | None = None
    ) -> None:
        self._model, self._device, self._forward_fn = model, device, forward_fn
        self._parameters = _parameters(model)

    def __call__(self, batch: Batch) -> Any:
        """What the model, or ``forward_fn``, returns."""

        def copy(x: Tensor) -> Tensor:
            return x.to(self._device, copy=True)

        inputs = map_tensors(batch.inputs, copy, lambda x: x.kind(map(copy, x.tensors)))
        if self._forward_fn is not None:
            return self._forward_fn(self._model, inputs)
        if isinstance(inputs, Mapping):
            return self._model(**inputs)
        if isinstance(inputs, (tuple, list)) and isinstance(batch.inputs, (tuple, list)):
            return self._model(*inputs)
        return self._model(inputs)

    def label_keys(self, item: Mapping[Any, Any]) -> set[str]:
        """Labels in a mapping that the forward is called with; ``forward_fn`` gets them all."""
        given = {key for key in LABEL_KEYS if key in item}
        if self._forward_fn is not None:
            return given
        return {key for key in given if self._requires(key, item)}

    def requires_labels(self, inputs: Any) -> bool:
        """Whether the model itself is given labels with these inputs."""
        return (
            self._forward_fn is None
            and isinstance(inputs, Mapping)
            and any(key in inputs for key in LABEL_KEYS)
        )

    def _requires(self, key: str, item: Mapping[Any, Any]) -> bool:
        parameter = self._parameters.get(key)
        if parameter is None:
            return False
        if parameter.default is Parameter.empty:
            return True
        decodes = any(name in self._parameters for name in _DECODER_INPUTS)
        tokens = getattr(item[key], "ndim", 0) == 2
        return decodes and tokens and not any(name in item for name in _DECODER_INPUTS)

    def check_names(self, names: Iterable[str], *, dataset: bool) -> None:
        """Refuse inputs that the forward has no parameter for.

        Those of a ``dataset`` have to be named by its signature: a ``**kwargs`` would let columns
        of all kinds through.

        Raises:
            DataError: there are some.
        """
        if self._forward_fn is not None or not self._parameters:
            return
        anything = any(p.kind is Parameter.VAR_KEYWORD for p in self._parameters.values())
        known = [
            name
            for name, parameter in self._parameters.items()
            if parameter.kind in (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
        ]
        unknown = [name for name in names if name not in known]
        if unknown and not (anything and (not dataset or not known)):
            raise DataError(
                f"{'data have the columns' if dataset else 'a batch holds'} {', '.join(unknown)}, "
                f"but the forward of {type(self._model).__name__} takes {', '.join(known)}; drop "
                "or rename them, or say with forward_fn= what the model is called with"
            )

    def named(self, inputs: Any) -> dict[str, Any]:
        """Inputs by the names they have for the forward, "argument 1" and so on without one."""
        if isinstance(inputs, Mapping):
            return dict(inputs)
        arguments = inputs if isinstance(inputs, (tuple, list)) else (inputs,)
        names = list(getattr(inputs, "_fields", ()))
        if not names and self._forward_fn is None:
            names = self._positional()
        names += [f"argument {at}" for at in range(len(names), len(arguments))]
        return dict(zip(names, arguments, strict=False))

    def takes(self, count: int) -> bool:
        """Whether the forward may be given so many inputs by their places."""
        kinds = {p.kind for p in self._parameters.values()}
        unknown = self._forward_fn is not None or not kinds or Parameter.VAR_POSITIONAL in kinds
        return unknown or count <= len(self._positional())

    def _positional(self) -> list[str]:
        positional = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
        return [name for name, p in self._parameters.items() if p.kind in positional]


def _parameters(model: nn.Module) -> Mapping[str, Parameter]:
    """Of the model's forward; none where that has no signature."""
    try:
        return inspect.signature(model.forward).parameters
    except (TypeError, ValueError):
        return {}
