"""Codes whose entries come in pairs of opposite sign."""

from __future__ import annotations

from dataclasses import dataclass

from sylvinit.codes.base import Code, Latent, needs_sample_means
from sylvinit.statistics import LayerStatistics


@dataclass(frozen=True)
class SignPairs:
    """The code (s_1, -s_1, s_2, -s_2, ...) for layers that are followed by a rectifier.

    ReLU(s) alone forgets where s is negative; ReLU(s) and ReLU(-s) together keep s (Shang, Sohn,
    Almeida and Lee, "Understanding and improving convolutional neural networks via concatenated
    rectified linear units", 2016). With S = (S_1, -S_1) the equation A W + W B = Q has the solution
    (W_1, -W_1) with 2 A_1 W_1 + W_1 B = Q_1, which is what is solved.

    Attributes:
        code: what the pairs are made of.
    """

    code: Code

    @property
    def name(self) -> str:
        """The name of the code, with "-pairs"."""
        return f"{self.code.name}-pairs"

    @property
    def needs_labels(self) -> bool:
        """As the code."""
        return self.code.needs_labels

    @property
    def needs_sample_means(self) -> bool:
        """As the code."""
        return needs_sample_means(self.code)

    @property
    def reservoir(self) -> int:
        """As the code."""
        return self.code.reservoir

    @property
    def reducible(self) -> bool:
        """As the code."""
        return self.code.reducible

    @property
    def mirrored(self) -> bool:
        """Every entry stands for itself and its negative."""
        return True

    def fit(self, stats: LayerStatistics, k: int, seed: int) -> Latent:
        """The entries of the code without their negatives."""
        return self.code.fit(stats, k, seed)
