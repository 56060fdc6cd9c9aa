"""The protocol of a latent code, and what it returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from sylvinit.moments.statistics import LayerStatistics


@dataclass(frozen=True)
class Latent:
    """A latent code s of the rows x, by the moments that the layer's equation needs.

    Every tensor is float64 with a leading axis of groups; k is the number of code entries.

    Attributes:
        second_moment: A = E[s s^T], (groups, k, k); or its diagonal, (groups, k), where no two
            entries are nonzero together.
        cross: E[s x^T], (groups, k, d).
        mean: E[s], (groups, k).
        encoder: E of an affine code s = E x - c, (groups, k, d); None if s is not a function of x.
    """

    second_moment: Tensor
    cross: Tensor
    mean: Tensor
    encoder: Tensor | None

    @property
    def rows(self) -> int:
        """Number of code entries k."""
        return self.mean.shape[1]

    @staticmethod
    def affine(stats: LayerStatistics, encoder: Tensor, center: Tensor | None = None) -> Latent:
        """The moments of s = E (x - m).

        A = E Sigma E^T + e e^T and E[s x^T] = E Sigma + e mu^T with e = E[s] = E (mu - m).
        ``encoder`` is E, (groups, k, d) or (k, d); ``center`` is m, (groups, d), by default zero:
        pass ``stats.mean`` for a centered code.
        """
        encoder = encoder.to(stats.mean).expand(stats.groups, *encoder.shape[-2:])
        offset = stats.mean if center is None else stats.mean - center
        mean = (encoder @ offset[:, :, None])[:, :, 0]
        cross = encoder @ stats.covariance
        second = cross @ encoder.mT + mean[:, :, None] * mean[:, None, :]
        second = (second + second.mT) / 2
        cross = cross + mean[:, :, None] * stats.mean[:, None, :]
        return Latent(second, cross, mean, encoder)

    @property
    def diagonal(self) -> bool:
        """Whether ``second_moment`` holds the diagonal alone."""
        return self.second_moment.ndim == 2

    @property
    def power(self) -> Tensor:
        """E[s_i^2], (groups, k)."""
        second = self.second_moment
        return second if self.diagonal else second.diagonal(dim1=1, dim2=2)

    def full(self) -> Tensor:
        """A as matrices, (groups, k, k)."""
        return torch.diag_embed(self.second_moment) if self.diagonal else self.second_moment

    def covariance(self) -> Tensor:
        """Covariance of the code, (groups, k, k)."""
        return self.full() - self.mean[:, :, None] * self.mean[:, None, :]

    def largest_row_sum(self, *, centered: bool) -> Tensor:
        """Largest sum of magnitudes in a row of A, or of the covariance if centered, (groups,)."""
        if not self.diagonal:
            matrix = self.covariance() if centered else self.second_moment
            return matrix.abs().sum(dim=2).amax(dim=1)
        if not centered:
            return self.second_moment.amax(dim=1)
        size = self.mean.abs()
        rows = (self.power - size**2).abs() + size * (size.sum(dim=1, keepdim=True) - size)
        return rows.amax(dim=1)

    def available(self) -> Tensor:
        """Entries that are not identically zero, bool (groups, k)."""
        return self.power > 0

    def gather(self, index: Tensor, keep: Tensor) -> Latent:
        """The code entries with the indices (groups, rows); zero where not ``keep``."""
        rows = index.shape[1]

        def take(x: Tensor) -> Tensor:
            at = index if x.ndim == 2 else index[:, :, None].expand(-1, -1, x.shape[2])
            mask = keep if x.ndim == 2 else keep[:, :, None]
            return torch.where(mask, x.gather(1, at), 0.0)

        second = take(self.second_moment)
        if not self.diagonal:
            second = second.gather(2, index[:, None, :].expand(-1, rows, -1))
            second = torch.where(keep[:, None, :], second, 0.0)
        return Latent(
            second,
            take(self.cross),
            take(self.mean),
            None if self.encoder is None else take(self.encoder),
        )

    def joined(self, other: Latent, stats: LayerStatistics) -> Latent:
        """This code and another, affine one, one after the other.

        E[s s'^T] = E[s x^T] E'^T - E[s] c'^T, with c' = E' mu - E[s'].
        """
        if other.encoder is None:
            raise TypeError("only an affine code can be joined to another")
        offset = (other.encoder @ stats.mean[:, :, None])[:, :, 0] - other.mean
        mixed = self.cross @ other.encoder.mT - self.mean[:, :, None] * offset[:, None, :]
        top = torch.cat((self.full(), mixed), dim=2)
        bottom = torch.cat((mixed.mT, other.full()), dim=2)
        encoder = None if self.encoder is None else torch.cat((self.encoder, other.encoder), dim=1)
        return Latent(
            torch.cat((top, bottom), dim=1),
            torch.cat((self.cross, other.cross), dim=1),
            torch.cat((self.mean, other.mean), dim=1),
            encoder,
        )


@runtime_checkable
class Code(Protocol):
    """What a layer's outputs are asked to be; implement it for a code of your own.

    A code may also have these attributes: ``needs_sample_means``, whether ``stats.samples`` must be
    there (it needs labels as well then); ``needs_targets``, whether ``stats.targets`` must be there
    in place of classes (the head alone has them); and ``mirrored``, whether every entry s stands
    for the two outputs s and -s (``fit`` is then asked for half as many).
    """

    @property
    def name(self) -> str:
        """For reports and messages."""
        ...

    @property
    def needs_labels(self) -> bool:
        """Whether ``stats.class_counts`` and ``stats.class_means`` must be there."""
        ...

    @property
    def reservoir(self) -> int:
        """How many rows ``stats.reservoir`` should hold at most; 0 for none."""
        ...

    @property
    def reducible(self) -> bool:
        """Whether ``fit`` works in any orthonormal coordinates of the rows' span.

        If not, ``stats`` comes in the coordinates of the layer's input, features in the order of
        the weight: channels, then taps.
        """
        ...

    def fit(self, stats: LayerStatistics, k: int, seed: int) -> Latent:
        """A code with at most ``k`` entries for a layer with these input statistics.

        Fewer than k entries may come back, and entries that are identically zero; the driver fills
        them up. ``seed`` is the only source of randomness.
        """
        ...


def needs_sample_means(code: Code) -> bool:
    """Whether the moments of the mean row of every sample are wanted."""
    return bool(getattr(code, "needs_sample_means", False))


def needs_targets(code: Code) -> bool:
    """Whether the labels that are needed are numbers and not classes."""
    return bool(getattr(code, "needs_targets", False))


def is_mirrored(code: Code) -> bool:
    """Whether every entry stands for itself and its negative."""
    return bool(getattr(code, "mirrored", False))


def fix_signs(stats: LayerStatistics, encoder: Tensor) -> Tensor:
    """The encoder with the entry of largest magnitude of every row positive."""
    return encoder * signs_of(stats.in_input_coordinates(encoder))


def signs_of(rows: Tensor) -> Tensor:
    """The sign, 1 or -1 (..., 1), of the entry of largest magnitude of rows (..., d).

    Entries within one part in a million of the largest count as tied, and the first of them
    decides: symmetric filters have exact ties, which rounding must not settle.
    """
    size = rows.abs()
    tied = size >= size.amax(dim=-1, keepdim=True) * (1 - 1e-6)
    first = tied.to(torch.uint8).argmax(dim=-1, keepdim=True)
    return torch.where(rows.gather(-1, first) < 0, -1.0, 1.0).to(rows.dtype)
