"""What bench/gpu times, with the kernels on host threads: it must not fail first on a GPU."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from gpu import gram_calls, gram_cases
from gpu.gram_cases import Inputs

from sylvinit.backends import extension
from sylvinit.moments import fused


@pytest.mark.parametrize("channels_last", [False, True])
def test_kernels_of_every_tile(
    shim: Any, monkeypatch: pytest.MonkeyPatch, channels_last: bool
) -> None:
    properties = SimpleNamespace(multi_processor_count=2)
    monkeypatch.setattr(extension, "module", shim)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(cuda_stream=0))
    inputs = Inputs(gram_cases.DRY[0], torch.float32, channels_last, "cpu")
    x, layout = inputs.x(0), inputs.layout(0)
    exact = torch.zeros(1, inputs.case.d + 1, inputs.case.d + 1, dtype=torch.float64)
    status = torch.zeros(1, dtype=torch.int32)
    nothing = (None, None, 0, None, None, None)
    fused.patch_gram(x, exact, status, *nothing, layout.numbers(), "ffma")
    for arithmetic in fused.ARITHMETICS:
        for tile in (0, 32, 64, 128):
            kernels = gram_calls.Kernels(inputs, arithmetic, tile)
            kernels.calls()[0]()
            tolerance = 1e-2 if arithmetic == "tf32" else 1e-4  # of sums of 12 products
            torch.testing.assert_close(kernels.gram, exact, rtol=0, atol=tolerance)


def test_products_of_two_halves() -> None:
    inputs = Inputs(gram_cases.DRY[0], torch.float32, True, "cpu")
    plain, halves = gram_calls.gathered(inputs)[0](), gram_calls.halves(inputs)[0]()
    torch.testing.assert_close(halves, plain, rtol=1e-5, atol=1e-5)
