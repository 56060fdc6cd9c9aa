"""Accuracy of float32 layers where the input is badly conditioned, against the same in float64."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from driver_helpers import BEFORE
from torch import Tensor, nn

import sylvinit
from sylvinit.backends import choose
from sylvinit.backends.eigen import Thresholds, eigh
from sylvinit.codes import PCA
from sylvinit.sylvester.semidefinite import solve_positive


def _initialized(x: Tensor, labels: Tensor, dtype: torch.dtype, **options: Any) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(x.shape[1], 16), nn.Linear(16, 10)).to(dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sylvinit.SylvinitWarning)
        sylvinit.initialize_(model, (x.to(dtype), labels), **{"preset": "best", **options})
    return model


@pytest.mark.parametrize("code", ["pca", "lda", "ica", "onehot", PCA(center=False)], ids=str)
def test_large_mean_costs_no_components(code: Any) -> None:
    # Means of 300 beside deviations of 3 to 7, distinct so that the components are well separated.
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1000, 64, generator=generator, dtype=torch.float64)
    x = (x * torch.linspace(3, 7, 64, dtype=torch.float64) + 300).float()
    labels = torch.arange(1000) % 10
    low = _initialized(x, labels, torch.float32, code=code)[0].weight.detach().double()
    high = _initialized(x.double(), labels, torch.float64, code=code)[0].weight.detach()
    # float32 products about the mean: eps * condition of the gaps; the worst seen was 5e-6.
    assert float((low - high).norm() / high.norm()) < 1e-4


def test_low_rank_rows_with_a_mean_have_their_rank() -> None:
    generator = torch.Generator().manual_seed(1)
    basis = torch.randn(3, 64, generator=generator)
    x = torch.randn(40, 3, generator=generator) @ basis + 100
    model = nn.Linear(64, 16)
    with pytest.warns(sylvinit.SylvinitWarning, match="rank < d_out"):
        report = sylvinit.initialize_(model, x, preset="best")
    assert report.layers[0].rank == 3
    assert report.layers[0].filled == 13
    # Every row is a unit component or an orthogonal mixture of some: none is left (nearly) zero.
    assert float(model.weight.norm(dim=1).min()) > 0.05


def test_groups_of_different_rank_are_filled_each_on_its_own() -> None:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(60, 16, 5, 5, generator=generator, dtype=torch.float64)
    x[:, 10:] = x[:, 8:9]  # the second group has rank 2

    class Siblings(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Conv2d(16, 8, 1, groups=2, dtype=torch.float64)
            self.b = nn.Conv2d(16, 8, 1, groups=2, dtype=torch.float64)
            self.head = nn.Linear(16, 4, dtype=torch.float64)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.cat((self.a(x), self.b(x)), dim=1).mean(dim=(2, 3)))

    model = Siblings()
    before = model.b.weight.detach().clone()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sylvinit.SylvinitWarning)
        report = sylvinit.initialize_(model, (x, torch.arange(60) % 4), preset="best")
    assert bool((model.b.weight != before).flatten(1).any(dim=1).all())
    assert report["a"].filled == 2
    assert report["b"].filled == 4


def test_absent_classes_of_a_grouped_head_are_zero() -> None:
    x = torch.randn(80, 8, 1, 1, dtype=torch.float64)
    model = nn.Sequential(nn.Conv2d(8, 16, 1, groups=2, dtype=torch.float64), nn.Flatten())
    with pytest.warns(sylvinit.SylvinitWarning, match="fewer classes"):
        sylvinit.initialize_(model, (x, torch.arange(80) % 8), preset="best")
    weight = model[0].weight.detach()  # type: ignore[union-attr]
    assert float(weight[:8].abs().amin(dim=0).max()) > 0
    assert float(weight[8:].abs().max()) == 0


def test_head_with_a_frozen_bias_is_solved_without_it() -> None:
    x = torch.randn(200, 6, dtype=torch.float64) + 2
    labels = torch.arange(200) % 3
    frozen = nn.Linear(6, 3, dtype=torch.float64)
    frozen.bias.requires_grad_(False)
    bias = frozen.bias.clone()
    without = nn.Linear(6, 3, bias=False, dtype=torch.float64)
    report = sylvinit.initialize_(frozen, (x, labels), preset="best")
    sylvinit.initialize_(without, (x, labels), preset="best")
    assert torch.equal(frozen.bias, bias)
    assert torch.equal(frozen.weight, without.weight)
    assert any("frozen" in note for note in report.layers[0].notes)


def test_subclass_that_computes_something_else_is_left_alone() -> None:
    class Standardized(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return nn.functional.linear(input, self.weight - self.weight.mean(), self.bias)

    model = nn.Sequential(Standardized(6, 5), nn.Linear(5, 3))
    before = model[0].weight.detach().clone()  # type: ignore[union-attr]
    report = sylvinit.initialize_(model, (torch.randn(50, 6), torch.arange(50) % 3), preset="best")
    assert report["0"].status == "skipped"
    assert torch.equal(model[0].weight, before)  # type: ignore[arg-type]


def test_hooks_of_attention_run_once_for_a_microbatch() -> None:
    calls: list[int] = []
    attention = nn.MultiheadAttention(8, 2, batch_first=True, dtype=torch.float64)
    attention.register_forward_hook(lambda *_: calls.append(1))

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = attention
            self.head = nn.Linear(8, 2, dtype=torch.float64)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.attention(x, x, x)[0].mean(dim=1))

    x = torch.randn(20, 5, 8, dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sylvinit.SylvinitWarning)
        sylvinit.initialize_(Model(), (x, torch.arange(20) % 2), preset="best", microbatch=10)
    assert len(calls) == BEFORE + 2


def test_eigh_falls_back_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = torch.randn(2, 6, 6, dtype=torch.float64)
    matrix = matrix @ matrix.mT
    wrong = (torch.ones(2, 6, dtype=torch.float64), torch.zeros(2, 6, 6, dtype=torch.float64))
    monkeypatch.setattr(torch.linalg, "eigh", lambda _: wrong)
    notes: list[str] = []
    values, vectors = eigh(matrix, notes)
    # eps * condition-free bound of a backward stable routine, with a generous constant.
    torch.testing.assert_close(vectors @ torch.diag_embed(values) @ vectors.mT, matrix)
    assert len(notes) == 1
    assert "SciPy" in notes[0]


@pytest.mark.parametrize("seed", [0, 1])
def test_random_codes_of_few_smooth_float32_rows(seed: int) -> None:
    # 200 rows of 288 features in float32: the moments have eigenvalues of -1e-7 of the largest, and
    # 64 random projections of rows of a steep spectrum have eigenvalues as small as those.
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(20, 8, 16, 16, generator=generator)
    maps = torch.nn.functional.avg_pool2d(noise, 5, 1, padding=2)
    mixing = torch.randn(32, 8, generator=generator)
    x = (torch.einsum("oc,nchw->nohw", mixing, maps) + 1).relu()
    model = nn.Conv2d(32, 64, 3, padding=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sylvinit.SylvinitWarning)
        report = sylvinit.initialize_(model, x, code="correlated", seed=seed)
    assert report.layers[0].status == "solved"
    # Of the equation whose eigenvalues below zero, which are rounding, are zero; the worst seen was
    # 3e-16. Where they counted it was 4e-13 here, and above the bound in a real network.
    assert report.layers[0].residual < 1e-14


def test_the_residual_forgives_rounding_below_zero_and_nothing_else() -> None:
    generator = torch.Generator().manual_seed(0)
    u = torch.linalg.qr(torch.randn(2, 4, 4, generator=generator, dtype=torch.float64)).Q
    v = torch.linalg.qr(torch.randn(2, 9, 9, generator=generator, dtype=torch.float64)).Q
    values_a = torch.tensor([[-1e-6, 1e-5, 1e-3, 1.0]], dtype=torch.float64).repeat(2, 1)
    values_b = torch.linspace(1, 2, 9, dtype=torch.float64).repeat(2, 1)
    values_b[:, :3] = torch.tensor([-2e-7, 0.0, 2e-7])
    a, b = ((z * values[:, None]) @ z.mT for z, values in ((u, values_a), (v, values_b)))
    q = torch.randn(2, 4, 9, generator=generator, dtype=torch.float64)
    total = values_a.clamp(min=0)[:, :, None] + values_b.clamp(min=0)[:, None, :]
    inside = (u.mT @ q @ v) / torch.where(total > 0, total, 1.0)
    inside[:, 0, :3] = 0  # both are rounding
    expected = u @ inside @ v.mT
    routines = choose("cpu", torch.device("cpu"))
    for threshold_b, forgiven in (([3e-7, 3e-7], True), ([3e-7, 1e-7], False), ([0.0, 0.0], False)):
        # Of the second equation, or of both, -2e-7 is no rounding.
        thresholds = Thresholds(
            torch.tensor([2e-6, 2e-6]).double(), torch.tensor(threshold_b).double()
        )
        notes: list[str] = []
        found = solve_positive(a, b, q, thresholds, routines, notes)
        assert (found.residual < 1e-14) == forgiven
        assert found.residual < 1e-14 or found.residual > 1e-9
        assert [note for note in notes if "below zero" in note]
        if forgiven:
            assert found.dropped == 6
            # Eigenvalues of 1e-5, given with errors of 1e-16.
            torch.testing.assert_close(found.w, expected, rtol=1e-9, atol=1e-6)
