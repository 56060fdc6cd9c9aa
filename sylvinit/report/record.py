"""What was done to every layer."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, fields
from os import PathLike
from typing import TYPE_CHECKING, Any

from sylvinit.report import table
from sylvinit.report.drawing import require_matplotlib, save
from sylvinit.report.html import html

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass
class LayerReport:
    """One layer, one normalization, or one module that was left alone.

    Attributes:
        name: qualified name in the model.
        kind: type of the module.
        status: "solved", "drawn" (random filters), "calibrated", "skipped", or "planned" in a dry
            run.
        reason: why it was skipped.
        code: the latent code.
        lam: weight of the encoding loss; nan (None in plain values) where nothing was solved with
            it, such as heads whose labels' likelihood was fitted.
        d_in, d_out: inputs and outputs per group.
        groups: number of groups, each with an equation of its own.
        rows: samples, tokens or patches behind the moments; ``patches`` is its older name.
        rank: numerical rank of the input covariance (largest over groups).
        spectrum: shares of the input's variance along its principal components, largest first: at
            most 64, no more than were computed, means over groups. Empty where earlier siblings
            took the first components.
        filled: outputs per group that the code did not provide; see the notes.
        residual: |AW + WB - Q| / ((|A| + |B|)|W| + |Q|) of the solution, before any rescaling of
            its rows and without what the zero rule leaves out; of principal components on eight
            vectors of signs; the notes say where eigenvalues below zero, which are rounding, were
            taken as zero.
        std_before, std_after: root mean square over outputs of the output's standard deviation
            under the old and the new weight (for a normalization: of its input, as it kept it
            before and now).
        seconds: spent on this layer, the forward pass excluded.
        notes: what was done beyond the plain equation.
        remarks: kind of weakness -> detail.
    """

    name: str
    kind: str
    status: str
    reason: str = ""
    code: str = ""
    lam: float = math.nan
    d_in: int = 0
    d_out: int = 0
    groups: int = 1
    rows: int = 0
    rank: int = 0
    spectrum: list[float] = field(default_factory=list)
    filled: int = 0
    residual: float = math.nan
    std_before: float = math.nan
    std_after: float = math.nan
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)
    remarks: dict[str, str] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """The name for people; that of the model itself is empty."""
        return self.name or "(model)"

    @property
    def patches(self) -> int:
        """The older name of ``rows``."""
        return self.rows

    def to_dict(self) -> dict[str, Any]:
        """All fields, ``rows`` as ``patches``, too; quantities that do not apply are None."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return _finite({**values, "patches": self.rows})


@dataclass
class Candidate:
    """A start that preset "auto" compared: how well a head on its features does on unseen samples.

    Attributes:
        name: "own" (the network as it came), "own, calibrated" (with batch norm statistics of the
            data) or "best".
        error: held-out error of a ridge regression of the labels on the head's inputs, as a share
            of what their mean misses; nan without a score.
        accuracy: held-out accuracy of the same; nan for numbers.
        spread: over how many directions the variance of these features is spread, (sum v)^2 /
            sum v^2 of the eigenvalues v of their covariance.
        standard_error: of the difference between its error and that of the start it is compared
            with, over samples; nan for that start.
        chosen: whether it was written.
        reason: why it has no score, or was chosen against its error.
    """

    name: str
    error: float = math.nan
    accuracy: float = math.nan
    spread: float = math.nan
    standard_error: float = math.nan
    chosen: bool = False
    reason: str = ""


@dataclass(repr=False)
class Report:
    """What :func:`sylvinit.initialize_` did; ``str(report)`` is a table, in notebooks HTML.

    Attributes:
        layers: in execution order, modules that never ran last.
        samples: samples of data used.
        head: name of the classifier, or None.
        candidates: what preset "auto" compared, the chosen one among them; empty for the others.
        seconds: of the whole call.
        warnings: what the user should know; also raised as warnings.
        settings: the arguments of :func:`sylvinit.initialize_` as plain values, those included that
            :func:`sylvinit.initialize_head_` fixes; codes and functions are given by name.
    """

    layers: list[LayerReport] = field(default_factory=list)
    samples: int = 0
    head: str | None = None
    candidates: list[Candidate] = field(default_factory=list)
    seconds: float = 0.0
    warnings: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> LayerReport:
        """The report of the layer of that name."""
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise KeyError(name)

    @property
    def solved(self) -> list[LayerReport]:
        """The layers whose weights were written."""
        return [layer for layer in self.layers if layer.status == "solved"]

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, dicts, strings and numbers."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        candidates = [_finite(vars(candidate)) for candidate in self.candidates]
        return {
            **values,
            "layers": [layer.to_dict() for layer in self.layers],
            "candidates": candidates,
        }

    def to_json(self, indent: int | None = 2) -> str:
        """The same as JSON."""
        return json.dumps(self.to_dict(), indent=indent)

    def table(self, *, all: bool = False) -> str:
        """The report as text of at most 100 columns, with long names cut from the left.

        Layers that were left alone are counted for each reason, and notes that differ in numbers
        alone are shown once. With ``all`` each has its row, and each note its layers.
        """
        return table.text(self, everything=all)

    def __str__(self) -> str:
        return self.table()

    def __repr__(self) -> str:
        return f"<Report: {table.summary(self)}>"

    def _repr_html_(self) -> str:
        return html(self)

    def plot(self, path: str | PathLike[str] | None = None) -> Figure:
        """Draw spectra, ranks and deviations of the outputs, layer by layer.

        Args:
            path: where to write it, too, in the format of the suffix (PNG without one).

        Returns:
            A matplotlib figure of its own, without pyplot; notebooks show it.

        Raises:
            DataError: no layer was solved, drawn or calibrated.
            OptionError: matplotlib does not know the format.
            MissingMatplotlibError: matplotlib cannot be imported.
            OSError: the file cannot be written.
        """
        require_matplotlib("the report's figure")
        from sylvinit.report.picture import draw_report

        figure = draw_report(self)
        if path is not None:
            save(figure, path)
        return figure


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    """The same with None for quantities that do not apply."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in values.items()
    }
