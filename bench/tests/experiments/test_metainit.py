"""MetaInit's gradient quotient, against the whole Hessian."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from initialiser_helpers import tiny_resnet
from initialisers.metainit import gradient_quotient, metainit_
from initialisers.random import he_normal_
from torch import Tensor, nn
from torch.func import functional_call


def tiny_problem() -> tuple[nn.Module, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    inputs = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    return model, inputs, torch.randint(2, (6,), generator=generator)


def test_gradient_quotient_is_that_of_the_whole_hessian() -> None:
    model, inputs, labels = tiny_problem()
    shapes = {name: value.shape for name, value in model.named_parameters()}
    flat = torch.cat([value.detach().flatten() for value in model.parameters()])

    def loss_of(vector: Tensor) -> Tensor:
        parts = vector.split([shape.numel() for shape in shapes.values()])
        values = {n: p.view(s) for (n, s), p in zip(shapes.items(), parts, strict=True)}
        return F.cross_entropy(functional_call(model, values, (inputs,)), labels)

    hessian = torch.autograd.functional.hessian(loss_of, flat).numpy()
    gradient = torch.autograd.functional.jacobian(loss_of, flat).numpy()
    eps = 1e-3
    expected = 0.0
    for g, product in zip(gradient, hessian @ gradient, strict=True):
        expected += abs((g - product) / (g + (eps if g >= 0 else -eps)) - 1) / len(flat)
    loss = F.cross_entropy(model(inputs), labels)
    found = gradient_quotient(loss, list(model.parameters()), eps)
    assert float(found.detach()) == pytest.approx(expected, rel=1e-9)


def mean_quotient(model: nn.Module) -> float:
    """The gradient quotient on random data in evaluation mode, in float64, mean of 20 batches."""
    model = copy.deepcopy(model).double().eval()
    generator = torch.Generator().manual_seed(99)
    found = []
    for _ in range(20):
        inputs = torch.randn(16, 3, 8, 8, generator=generator, dtype=torch.float64)
        labels = torch.randint(4, (16,), generator=generator)
        loss = F.cross_entropy(model(inputs), labels)
        found.append(float(gradient_quotient(loss, list(model.parameters())).detach()))
    return float(np.median(found))


def test_metainit_lowers_the_gradient_quotient(data: tuple[Tensor, Tensor]) -> None:
    start, model = tiny_resnet(), tiny_resnet()
    he_normal_(start, data, 0)
    metainit_(model, data, 0, steps=30, batch=16)
    assert mean_quotient(model) < 0.7 * mean_quotient(start)
    for name, value in start.named_parameters():  # only norms change, and only of weights
        found, value = model.get_parameter(name).detach(), value.detach()
        if value.ndim >= 2:
            torch.testing.assert_close(found / found.norm(), value / value.norm())
            assert not torch.allclose(found, value, rtol=0.01)
        else:
            assert torch.equal(found, value)
