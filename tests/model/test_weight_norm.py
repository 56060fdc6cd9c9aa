"""Writing through torch.nn.utils.weight_norm, the one with hooks."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from sylvinit.model import layers_of
from sylvinit.model.layer import assign
from sylvinit.model.weight_norm import factors_of, norm_of, refresh_weights

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")
F64 = torch.float64

MODULES: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "linear": (lambda: nn.Linear(5, 4), "weight"),
    "convolution": (lambda: nn.Conv1d(4, 6, 3, groups=2), "weight"),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 3), "weight"),
    "attention": (lambda: nn.MultiheadAttention(6, 2), "in_proj_weight"),
}


@pytest.mark.parametrize("dim", [0, 1, None])
@pytest.mark.parametrize("kind", MODULES)
def test_the_product_is_what_was_written(kind: str, dim: int | None) -> None:
    make, name = MODULES[kind]
    module = nn.utils.weight_norm(make().to(F64), name, dim)
    expected = torch.randn(getattr(module, name).shape, dtype=F64)
    assign(module, name, expected)
    # g |v| / |v| in float64: a few roundings.
    torch.testing.assert_close(getattr(module, name), expected, rtol=1e-14, atol=0)
    nn.utils.remove_weight_norm(module, name)  # torch's own product of the two factors
    torch.testing.assert_close(getattr(module, name), expected, rtol=1e-14, atol=0)


def test_rows_of_zeros() -> None:
    module = nn.utils.weight_norm(nn.Linear(5, 4))
    expected = torch.randn(4, 5)
    expected[1] = 0
    assign(module, "weight", expected)
    assert torch.equal(module.weight[1], torch.zeros(5))
    module(torch.ones(2, 5)).sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in module.parameters())


def test_weights_are_computed_from_what_the_factors_are_now() -> None:
    module = nn.utils.weight_norm(nn.Linear(5, 4))
    norm = norm_of(module, "weight")
    assert norm is not None
    g, v = factors_of(module, norm)
    assert (g is module.weight_g, v is module.weight_v) == (True, True)
    before = module.weight.detach().clone()
    with torch.no_grad():
        g.mul_(2)
    assert torch.equal(module.weight, before)
    refresh_weights(module)
    torch.testing.assert_close(module.weight.detach(), 2 * before)


def test_what_has_no_norm() -> None:
    assert norm_of(nn.Linear(5, 4), "weight") is None
    assert norm_of(nn.utils.weight_norm(nn.Linear(5, 4)), "bias") is None
    (layer,) = layers_of(nn.utils.weight_norm(nn.Linear(5, 4)), "a")
    assert [tuple(p.shape) for p in layer.parameters("weight")] == [(4, 1), (4, 5)]
