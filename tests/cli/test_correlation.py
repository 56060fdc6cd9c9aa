from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import sylvinit
from sylvinit import cli


def test_correlation_of_a_file(workshop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 5), nn.Conv2d(8, 4, 3))
    torch.save(model.state_dict(), "model.pt")
    arguments = ["correlation", "model.pt", "--per-layer", "--out", "r.txt", "--source", "a test"]
    assert cli.main(arguments) == 0
    out, err = capsys.readouterr()
    assert "56 filters of 12 units in 2 layers" in out
    assert "distance (taps)  correlation  standard error" in out
    assert "of 24 filters" in out
    assert "of 32 filters" in out
    assert err == ""
    written = sylvinit.priors.load("r.txt")
    found = sylvinit.filter_correlation(model)
    assert (written.filters, written.source) == (56, "a test")
    assert float((written - found).abs().max()) <= 5e-6  # five decimals are written
    assert cli.main(["correlation", "model.pt", "--kernel", "5x5"]) == 0
    assert "64 filters of 8 units in 1 layers" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.pt"], "there is no file missing.pt"),
        (["digits.npz"], "is no file of weights alone"),
        (["model.pt", "--kernel", "7"], "kernel sizes found: 3 x 3"),
        (["model.pt", "--kernel", "3xk"], "--kernel: expected a size as 3x3, 3, or 5, got '3xk'"),
        (["model.pt", "--kernel", "0"], "kernel_size must be one to three numbers of at least 1"),
        (["model.pt", "--out", "r.json"], "--out: expected a file ending in .txt"),
    ],
)
def test_correlation_that_cannot_be(
    workshop: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    torch.save(nn.Conv2d(3, 8, 3).state_dict(), "model.pt")
    assert cli.main(["correlation", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not Path("r.json").exists()
