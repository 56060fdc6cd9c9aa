"""Small float64 data, and checks of a written weight against the equation of explicit columns."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from helpers import assert_near, equation, one_hot, relative_defect, scores, weight_matrix
from torch import Tensor, nn

import sylvinit

# Relative to (|A| + |B|)|W| + |Q|. S comes from eigenvectors of moments that were summed in another
# order, which differ by eps |Sigma| / gap; the worst value seen in all tests is 3e-15.
DEFECT = 1e-12
# Of the largest entry (or of 1): sums in two orders; the worst difference seen is 2e-14.
CLOSE = 1e-12
CLASSES, SAMPLES = 3, 14


class Affine:
    """A code of the user's own, s = E (x - c) with an arbitrary E; A commutes with nothing."""

    name, needs_labels, reservoir, reducible = "affine", False, 0, False

    def fit(self, stats: sylvinit.LayerStatistics, k: int, seed: int) -> sylvinit.Latent:
        encoder, center = self.draw(stats.groups, k, stats.d)
        return sylvinit.Latent.affine(stats, torch.from_numpy(encoder), torch.from_numpy(center))

    @staticmethod
    def draw(groups: int, k: int, d: int) -> tuple[np.ndarray, np.ndarray]:
        generator = np.random.default_rng(3)
        return generator.normal(size=(groups, k, d)), generator.normal(size=(groups, d))


def samples(*shape: int, seed: int = 0) -> Tensor:
    """Correlated inputs with a mean: neighbors along the last axis are averaged."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(SAMPLES, *shape, generator=generator, dtype=torch.float64)
    return x + 0.7 * x.roll(1, dims=-1) + 0.4 + 0.3 * torch.arange(shape[-1])


def labels(seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(CLASSES, (SAMPLES,), generator=generator)


def expected_scores(
    code: Any, x: np.ndarray, y: np.ndarray, k: int, group: int, groups: int
) -> np.ndarray:
    if isinstance(code, Affine):
        encoder, center = code.draw(groups, k, len(x))
        return encoder[group] @ (x - center[group][:, None])
    return scores(code, x, y, k)


def check_rows(
    weight: np.ndarray, bias: Tensor | None, x: np.ndarray, s: np.ndarray, lam: float
) -> None:
    """One group: a weight (k, d), its bias, columns (d, n) and their scores (rows <= k, n)."""
    solved = weight[: len(s)]
    assert relative_defect(*equation(s, x, lam), solved) < DEFECT
    if bias is not None:
        expected = s.mean(axis=1) - solved @ x.mean(axis=1)
        assert_near(bias.detach().numpy()[: len(s)], expected, CLOSE)


def check_layer(
    module: nn.Module,
    x: np.ndarray,
    y: np.ndarray,
    code: Any,
    lam: float,
    report: sylvinit.LayerReport | None = None,
) -> None:
    """All groups of a module, given its columns (groups, d, n) and their labels."""
    weight = weight_matrix(module)
    groups, k, _ = weight.shape
    biases = [None] * groups if module.bias is None else module.bias.reshape(groups, -1)
    exempt = 0
    for group in range(groups):
        s = expected_scores(code, x[group], y, k, group, groups)
        check_rows(weight[group], biases[group], x[group], s, lam)
        exempt = max(exempt, k - len(s))
    if report is not None:
        assert report.status == "solved"
        assert report.rows == x.shape[2]
        # Rows beyond the rank are mixtures; nothing else is exempt.
        assert ("orthogonal mixtures" in " ".join(report.notes)) == (exempt > 0)


def check_head(module: nn.Module, x: np.ndarray, y: np.ndarray, lam: float) -> None:
    """One-hot codes; with a bias, the system augmented by the constant 1."""
    weight = module.weight.detach().numpy()
    if module.bias is not None:
        weight = np.concatenate((weight, module.bias.detach().numpy()[:, None]), axis=1)
        x = np.concatenate((x, np.ones((1, x.shape[1]))))
    assert relative_defect(*equation(one_hot(y, len(weight)), x, lam), weight) < DEFECT


def inputs_of(model: nn.Module, module: nn.Module, *args: Tensor) -> list[Tensor]:
    """The inputs of a module in every call of one forward of the finished model."""
    seen: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()))
    with torch.no_grad():
        model.eval()(*args)
    handle.remove()
    return seen


def batches(*inputs: Tensor) -> list[tuple[Any, Tensor]]:
    """Two uneven batches."""
    y = labels()
    part = [(tuple(x[:5] for x in inputs), y[:5]), (tuple(x[5:] for x in inputs), y[5:])]
    return part if len(inputs) > 1 else [(x[0], y) for x, y in part]
