"""A code of random filters that are spatially correlated as the input is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sylvinit.checks import check_number
from sylvinit.codes.code import Latent
from sylvinit.moments.statistics import LayerStatistics
from sylvinit.priors.distance import resample_correlation
from sylvinit.priors.files import loaded
from sylvinit.priors.matrix import check_correlation, kernel_of, spatial_correlation
from sylvinit.priors.strength import factor, repaired_correlation


@dataclass(frozen=True)
class CorrelatedFilters:
    """Random projections s = E (x - mu) whose filters have a correlation matrix R.

    Every row of E consists of a normal filter with correlation R for each channel ("Correlated
    Initialization for Correlated Data", algorithm 1), and has unit length. The layer's weight then
    solves the Sylvester equation for this code, so it is no longer E itself. On layers without
    spatial filters (a single tap) E is white.

    Attributes:
        corr: R, a matrix or the name of a built-in one, fitted to the layer's kernel by a distance
            model where sizes differ; None takes the correlation of the layer's own input, averaged
            over its channels, which needs no trained network.
        strength: factor on the entries of R off the diagonal.
    """

    corr: Any = None
    strength: float = 1.0
    name: str = "correlated"
    needs_labels: bool = False
    reservoir: int = 0
    reducible: bool = False

    def __post_init__(self) -> None:
        check_number("strength", self.strength)
        if self.corr is not None:
            check_correlation(loaded(self.corr))

    def fit(self, stats: LayerStatistics, k: int, seed: int) -> Latent:
        """Random filters, k a group; CorrelationError where R does not fit the layer's kernel."""
        channels = stats.d // stats.taps
        generator = np.random.default_rng(seed)
        white = generator.standard_normal((stats.groups, k, channels, stats.taps))
        rows = (torch.from_numpy(white) @ factor(self._matrix(stats)).mT).flatten(2)
        rows = rows / torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
        return Latent.affine(stats, rows.to(stats.mean), stats.mean)

    def _matrix(self, stats: LayerStatistics) -> Tensor:
        if stats.taps == 1:
            return torch.ones(1, 1, dtype=torch.float64, device="cpu")
        if self.corr is None:
            matrix = spatial_correlation(stats.covariance, stats.taps)
        else:
            given = loaded(self.corr)
            source = kernel_of(given, wanted=stats.kernel)
            matrix = resample_correlation(given, stats.kernel, source_kernel=source)
        # Rows of unit length do without eq. 17: taps may cancel.
        matrix, caveats = repaired_correlation(matrix, self.strength)
        stats.notes.extend(caveats)
        return matrix
