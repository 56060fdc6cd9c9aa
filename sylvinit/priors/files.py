"""Correlation matrices as text files; the built-in ones lie beside this module.

Lines "# key: value" say where a matrix comes from; then follow the matrix and, where they are
known, the standard errors of its entries and of its means at every distance.
"""

from __future__ import annotations

import io
import math
from importlib import resources
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sylvinit.errors import DataError, OptionError
from sylvinit.priors.distance import distance_classes
from sylvinit.priors.matrix import FilterCorrelation, check_correlation, kernel_of, shown

_SUFFIX = ".txt"


def available() -> list[str]:
    """Names of the built-in matrices."""
    names = (item.name for item in resources.files("sylvinit.priors").iterdir())
    return sorted(name.removesuffix(_SUFFIX) for name in names if name.endswith(_SUFFIX))


def load(name: str | PathLike[str]) -> FilterCorrelation:
    """A built-in matrix by its name, or one from a file of :func:`save`.

    Args:
        name: one of :func:`available`, or a path that ends in .txt.

    Returns:
        float64 (taps, taps); ``filters``, ``standard_error``, ``source``, ... are attributes.

    Raises:
        OptionError: there is none of that name.
        DataError: there is no such file, or it is damaged.
    """
    text = str(name)
    if text in available():
        file = resources.files("sylvinit.priors") / f"{text}{_SUFFIX}"
        return _parse(file.read_text("utf-8"), text)
    if not text.endswith(_SUFFIX):
        raise OptionError(
            f"corr: expected one of {available()} or a path ending in {_SUFFIX}, got {text!r}"
        )
    try:
        return _parse(Path(text).read_text("utf-8"), text)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"corr: cannot read {text}: {error}") from error


def loaded(corr: Any) -> Any:
    """The matrix that a name or a path stands for; anything else as it is."""
    return load(corr) if isinstance(corr, (str, PathLike)) else corr


def save(corr: Tensor, path: str | PathLike[str], *, source: str | None = None) -> None:
    """Write a matrix as text, with five decimals and its provenance.

    Args:
        corr: R, (taps, taps), preferably a :class:`sylvinit.correlated.FilterCorrelation`.
        path: of the file, which must end in .txt; an existing one is replaced.
        source: in words, on one line; by default what the matrix says.

    Raises:
        CorrelationError: ``corr`` is no correlation matrix.
        OptionError: the file has another suffix or cannot be written.
    """
    matrix = check_correlation(corr)
    if not str(path).endswith(_SUFFIX):
        raise OptionError(f"path: expected a file ending in {_SUFFIX}, got {path}")
    said = source if source is not None else getattr(corr, "source", "")
    out = io.StringIO()
    out.write(f"# kernel: {shown(kernel_of(corr))}\n")
    out.write(f"# filters: {getattr(corr, 'filters', 0)}\n# units: {getattr(corr, 'units', 0)}\n")
    out.write(f"# layers: {', '.join(getattr(corr, 'layers', ()))}\n")
    out.write(f"# source: {' '.join(said.split())}\n")
    for label, values in (
        ("correlation", matrix),
        ("standard error", getattr(corr, "standard_error", None)),
        ("standard error by distance", getattr(corr, "distance_error", None)),
    ):
        if values is not None and values.numel():
            out.write(f"# [{label}]\n")
            np.savetxt(out, np.atleast_2d(values.numpy()), fmt="%.5f")
    try:
        Path(path).write_text(out.getvalue(), encoding="utf-8")
    except OSError as error:
        raise OptionError(f"path: cannot write {path}: {error}") from error


def _parse(text: str, name: str) -> FilterCorrelation:
    facts: dict[str, str] = {}
    blocks: dict[str, list[list[float]]] = {}
    try:
        for line in text.splitlines():
            if line.startswith("# ["):
                blocks[line.removeprefix("# [").rstrip("]")] = []
            elif line.startswith("#"):
                key, _, value = line.removeprefix("#").partition(":")
                facts[key.strip()] = value.strip()
            elif line.strip():
                blocks[list(blocks)[-1]].append([float(word) for word in line.split()])
        tensors = {
            key: torch.tensor(rows, dtype=torch.float64, device="cpu")
            for key, rows in blocks.items()
        }
        kernel = tuple(int(axis) for axis in facts["kernel"].split("x"))
        matrix = check_correlation(tensors["correlation"], math.prod(kernel))
        by_distance = tensors.get("standard error by distance")
        expected = {
            "correlation": matrix.shape,
            "standard error": matrix.shape,
            "standard error by distance": (1, len(distance_classes(kernel)[0]) - 1),
        }
        for key, tensor in tensors.items():
            if tensor.shape != expected[key]:
                raise ValueError(f"[{key}] has shape {tuple(tensor.shape)}")
        return FilterCorrelation.of(
            matrix,
            kernel,
            filters=int(facts.get("filters", 0)),
            units=int(facts.get("units", 0)),
            standard_error=tensors.get("standard error"),
            distance_error=None if by_distance is None else by_distance[0],
            layers=tuple(filter(None, facts.get("layers", "").split(", "))),
            source=facts.get("source", ""),
        )
    except (KeyError, IndexError, ValueError) as error:
        raise DataError(f"corr: {name} is no file of a correlation matrix: {error!r}") from error
