"""GradInit lowers what it says, by scales alone."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from initialiser_helpers import plain
from initialisers.gradinit import gradinit_
from initialisers.random import he_normal_
from torch import Tensor, nn


def first_step(model: nn.Module, data: tuple[Tensor, Tensor], eta: float) -> tuple[float, float]:
    """Norm of the gradient, and loss after a step of length ``eta``, means of batches of 32."""
    norms, losses = [], []
    for start in range(0, 64, 16):
        moved = copy.deepcopy(model).train()
        some, others = slice(start, start + 32), slice(start + 16, start + 48)
        loss = F.cross_entropy(moved(data[0][some]), data[1][some])
        gradients = torch.autograd.grad(loss, list(moved.parameters()))
        norm = math.sqrt(sum(float(g.square().sum()) for g in gradients))
        with torch.no_grad():
            for parameter, gradient in zip(moved.parameters(), gradients, strict=True):
                parameter -= eta / norm * gradient
            losses.append(float(F.cross_entropy(moved(data[0][others]), data[1][others])))
        norms.append(norm)
    return float(np.mean(norms)), float(np.mean(losses))


@pytest.mark.parametrize("norm", [False, True])
def test_gradinit_lowers_the_norm_of_the_gradient(norm: bool, data: tuple[Tensor, Tensor]) -> None:
    start, model = plain(norm), plain(norm)
    he_normal_(start, data, 0)
    before, _ = first_step(start, data, 0.1)
    gradinit_(model, data, 0, iterations=60, batch=32, gamma=before / 2, lr=0.03)
    after, _ = first_step(model, data, 0.1)
    assert before / 2 * 0.7 < after < before / 2 * 1.3  # it stays near the bound from then on


@pytest.mark.parametrize("through_step", [False, True])
def test_gradinit_lowers_the_loss_after_a_step(
    through_step: bool, data: tuple[Tensor, Tensor]
) -> None:
    start, model = plain(True), plain(True)
    he_normal_(start, data, 0)
    _, before = first_step(start, data, 0.1)
    gradinit_(model, data, 0, iterations=40, batch=32, gamma=math.inf, through_step=through_step)
    _, after = first_step(model, data, 0.1)
    assert after < before - 0.05


def test_gradinit_only_scales(data: tuple[Tensor, Tensor]) -> None:
    start, model = plain(True), plain(True)
    he_normal_(start, data, 0)
    gradinit_(model, data, 0, iterations=5, batch=32, lr=0.5, min_scale=0.4)
    factors = []
    for name, value in start.named_parameters():
        found = model.get_parameter(name).detach()
        value = value.detach()
        if value.any():
            factors.append(float((found * value).sum() / value.square().sum()))
            torch.testing.assert_close(found, factors[-1] * value)
        else:
            assert not found.any()
    assert min(factors) >= 0.4 - 1e-6
    assert max(factors) - min(factors) > 0.1
