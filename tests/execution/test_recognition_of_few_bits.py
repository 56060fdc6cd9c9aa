"""Subclasses that compute a layer in arithmetic of few bits: eight are that layer, four are not."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from driver_helpers import CLASSES, images, unchanged
from torch import Tensor, nn

import sylvinit

# Products and sums in another order, float64, amplified by two layers.
SUMS = 1e-9
X, Y = images(30, dtype=torch.float64)  # (30, 3, 6, 6)
ROWS = X.flatten(1)[:, :12]


def network(head: nn.Module) -> nn.Sequential:
    """A layer of 10 outputs, and the head, for rows (n, 12)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return nn.Sequential(nn.Linear(12, 10), nn.ReLU(), head).double()


class Float8(nn.Linear):
    """Rounds both factors to three bits of mantissa, with a scale of the present numbers."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(_rounded(x), _rounded(self.weight), self.bias)


def _rounded(x: Tensor) -> Tensor:
    scale = 448 / x.abs().max().clamp(min=1e-12)
    return (x * scale).to(torch.float8_e4m3fn).to(x.dtype) / scale


class Int4(nn.Linear):
    """Three bits and a sign for the weights."""

    def forward(self, x: Tensor) -> Tensor:
        step = self.weight.abs().amax(dim=1, keepdim=True) / 3
        return F.linear(x, (self.weight / step).round() * step, self.bias)


def test_arithmetic_of_eight_bits_is_that_of_the_layer() -> None:
    model = network(Float8(10, CLASSES))
    with unchanged(model, written=("0.weight", "0.bias", "2.weight", "2.bias")):
        report = sylvinit.initialize_(model, (ROWS, Y), preset="best")
    assert any("computes the formula of Linear to" in note for note in report["2"].notes)
    plain = network(nn.Linear(10, CLASSES))
    sylvinit.initialize_(plain, (ROWS, Y), preset="best")
    torch.testing.assert_close(model[2].weight, plain[2].weight, rtol=SUMS, atol=SUMS)
    report = sylvinit.initialize_(network(Int4(10, CLASSES)), (ROWS, Y), preset="best")
    assert "something else" in report["2"].reason


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning:torch")
def test_quantization_aware_training() -> None:
    """Before its observers have seen weights; afterwards they hold new ones to the old range."""
    from torch.ao.nn import qat
    from torch.ao.quantization import get_default_qat_qconfig

    model = network(nn.Linear(10, CLASSES)).float()
    model[2] = qat.Linear(10, CLASSES, qconfig=get_default_qat_qconfig())
    rows = ROWS.float()
    before = [buffer.clone() for buffer in model.buffers()]
    report = sylvinit.initialize_(model, (rows, Y), preset="best")
    assert any("computes the formula of Linear to" in note for note in report["2"].notes)
    # (Not a snapshot, whose view by NumPy keeps torch from resizing the buffers of observers.)
    assert all(torch.equal(*pair) for pair in zip(before, model.buffers(), strict=True))
    accuracy = (model(rows).argmax(dim=1) == Y).float().mean()  # the observers see the weights
    assert accuracy > 0.5  # chance is 0.25
    assert "in few bits" in sylvinit.initialize_(model, (rows, Y), preset="best")["2"].reason
