"""What a monitor has recorded, for reading during training and after it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from sylvinit.errors import ModelError, OptionError, OptionTypeError

Row = dict[str, Any]
LAYER_COLUMNS: tuple[str, ...] = ("activation_variance", "gradient_variance", "dead")

COLUMNS = ("sign_changes", "gradient_magnitude", "effective_rank")
OTHER_COLUMNS = ("epoch", "updates", "update", "layers")  # of rows and histories
_KEPT_ON_DEVICE = 512  # rows, before they are read: rare enough that nobody waits for it
_SHOWN_EPOCHS = 10


class Record:
    """The record that :func:`sylvinit.diagnostics.monitor` gives; ``str(record)`` is a table.

    All reading works inside the ``with`` block and after it.

    Attributes:
        every: the updates 0, every, 2 every, ... are recorded.
        updates: updates seen so far, also those not recorded.
        epochs: the rows returned by :meth:`end_epoch`.
    """

    def __init__(
        self, layers: list[str], every: int, features: str | None, update: Callable[[], None]
    ) -> None:
        self.every = every
        self.updates = 0
        self.epochs: list[Row] = []
        self._names = layers
        self._columns = COLUMNS if features is not None else COLUMNS[:2]
        self._units: dict[str, int] = {}  # of the layers that got a gradient
        self._numbers: list[int] = []
        self._rows: list[list[float]] = []
        self._on_device: list[Tensor] = []
        self._epoch_begin = 0
        self._update: Callable[[], None] | None = update

    def update(self) -> None:
        """Tell that the parameters are about to be updated, their ``grad`` being what is used.

        Only for loops without a torch optimizer; steps of those are seen without it.

        Raises:
            ModelError: outside the ``with`` block, or steps of an optimizer have been counted.
        """
        if self._update is None:
            raise ModelError(
                "record.update() was called outside its `with monitor(...)` block, where nothing "
                "is recorded; call it within"
            )
        self._update()

    def end_epoch(self, **values: float) -> Row:
        """Close an interval of training.

        Args:
            **values: numbers of the caller's own, for example ``accuracy=0.61``.

        Returns:
            A row of :attr:`epochs`: "epoch" (counted from 1), "updates" (recorded since the row
            before), the means over these updates of "sign_changes", "gradient_magnitude" and, if
            asked for, "effective_rank" (NaNs left out; NaN if there is nothing else), and
            ``values``.

        Raises:
            OptionError: a name in ``values`` is that of a column of the record.
            OptionTypeError: a value is not a number.
        """
        rows = self._read()[self._epoch_begin :]
        row: Row = {"epoch": len(self.epochs) + 1, "updates": len(rows)}
        for index, column in enumerate(self._columns):
            row[column] = _mean([values[index] for values in rows])
        for name, value in values.items():
            if name in COLUMNS + OTHER_COLUMNS:
                raise OptionError(
                    f"end_epoch: {name!r} is a column of the record; give the value another name"
                )
            row[name] = _number(name, value)
        self._epoch_begin += len(rows)
        self.epochs.append(row)
        return row

    def history(self) -> dict[str, Any]:
        """Columns with an entry for each recorded update.

        Returns:
            "update": numbers of the updates, counted from 0. "sign_changes": share of the entries
            whose gradient changed sign since the update before (see
            :func:`sylvinit.diagnostics.gradient_sign_changes`). "gradient_magnitude": mean
            magnitude of the entries. "effective_rank": only with ``features=``. "layers": for each
            layer that ran, by name, the columns "activation_variance", "gradient_variance" and
            "dead". What could not be computed is NaN.
        """
        rows = self._read()
        shared, own = len(self._columns), len(LAYER_COLUMNS)
        columns = [[row[i] for row in rows] for i in range(shared + own * len(self._names))]
        layers: dict[str, dict[str, list[float]]] = {}
        for begin, name in zip(range(shared, len(columns), own), self._names, strict=True):
            layer = dict(zip(LAYER_COLUMNS, columns[begin : begin + own], strict=True))
            if not all(map(math.isnan, layer["activation_variance"])):
                layers[name] = layer
        known = dict(zip(self._columns, columns, strict=False))
        return {"update": list(self._numbers), **known, "layers": layers}

    def units(self) -> dict[str, int]:
        """How many units (channels) a layer has, of which "dead" are dead."""
        return dict(self._units)

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, dicts, strings and numbers; None for NaN and infinity."""
        counts = {"every": self.every, "updates": self.updates}
        history = {"history": self.history(), "units": self.units(), "epochs": self.epochs}
        return _plain({**counts, **history})

    def to_json(self, indent: int | None = 2) -> str:
        """The same as JSON."""
        return json.dumps(self.to_dict(), indent=indent)

    def __str__(self) -> str:
        history = self.history()
        if not history["update"]:
            return "no update recorded"
        cells = [("layer", "activation variance", "gradient variance", "dead units")]
        for name, columns in history["layers"].items():
            activation, gradient, dead = (columns[key][-1] for key in LAYER_COLUMNS)
            units = "" if math.isnan(dead) else f"{dead:.0f} of {self._units[name]}"
            cells.append((name or "(model)", _shown(activation), _shown(gradient), units))
        lines = []
        if len(cells) > 1:
            widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
            lines = [
                "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip()
                for row in cells
            ]
            lines.insert(1, "-" * len(lines[0]))
        last = _words({column: history[column][-1] for column in self._columns})
        number = history["update"][-1]
        lines.append(f"above and here: update {number} (the first is 0): {last}")
        for row in self.epochs[-_SHOWN_EPOCHS:]:
            means = _words({key: row[key] for key in row if key not in OTHER_COLUMNS})
            lines.append(f"epoch {row['epoch']}, means of {row['updates']} updates: {means}")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"Record({self.updates} updates, {len(self.epochs)} epochs)"

    def add(self, row: Tensor, units: Mapping[str, int]) -> None:
        """Add the statistics of the present update, a row of numbers on any device."""
        self._numbers.append(self.updates)
        self._on_device.append(row)
        self._units.update(units)
        if len(self._on_device) >= _KEPT_ON_DEVICE:
            self._read()

    def close(self) -> None:
        """Read what is left on the device; :meth:`update` is an error from now on."""
        self._update = None
        self._read()

    def _read(self) -> list[list[float]]:
        """All rows: those of the columns, then of every layer."""
        if self._on_device:
            self._rows += torch.stack(self._on_device).tolist()
            self._on_device = []
        return self._rows


def _mean(values: list[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return math.fsum(known) / len(known) if known else math.nan


def _number(name: str, value: Any) -> float:
    try:
        if isinstance(value, str):
            raise TypeError
        return float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise OptionTypeError(
            f"end_epoch: {name} must be a number, got {type(value).__name__}; one value per call"
        ) from error


def _shown(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.4g}"


def _words(values: dict[str, float]) -> str:
    return ", ".join(f"{k.replace('_', ' ')} {_shown(v) or '-'}" for k, v in values.items())


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
