"""Which tensors are weighted sums of layers' outputs, by the functions that made them."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sylvinit.model.tracing import ForwardTrace

A, B, C = (nn.Linear(4, 4) for _ in range(3))
FUSION = nn.Parameter(torch.tensor([0.0, 0.0]))
X = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))


def shares(forward: Callable[[Tensor], object]) -> list[dict[str, float]]:
    """What the tensors in the output of ``forward`` are sums of."""
    layers: dict[str, nn.Module] = {"a": A, "b": B, "c": C}
    names = {module: name for name, module in layers.items()}
    parameters = {id(p): f"{n}.{k}" for n, m in layers.items() for k, p in m.named_parameters()}
    trace = ForwardTrace({id(FUSION): "fusion", **parameters})
    handles = []
    for module in layers.values():
        handles.append(module.register_forward_pre_hook(lambda *_: trace.enter_layer(frozenset())))
        handles.append(
            module.register_forward_hook(
                lambda m, args, output: trace.leave_layer(m, args, output, follow=True)
            )
        )
    try:
        with torch.no_grad(), trace:
            output = forward(X)
    finally:
        for handle in handles:
            handle.remove()
    found = trace.shares_in(output)
    return [{names[module]: share for module, share in each.items()} for each in found]


def tokens(x: Tensor, count: int) -> Tensor:
    return x.unsqueeze(1) + torch.arange(count)[:, None]


def in_place(x: Tensor) -> Tensor:
    y = A(x)
    y += B(x)
    y /= 2
    return y


MEANS = [
    lambda x: (A(x) + B(x)) / 2,
    lambda x: 0.5 * (A(x) + B(x)),
    lambda x: torch.add(A(x), B(x)).mul_(0.5),
    lambda x: torch.div(A(x).add(B(x)), 2),
    lambda x: sum([A(x), B(x)]) / 2,
    lambda x: functools.reduce(operator.add, [A(x) / 2, B(x) / 2]),
    lambda x: torch.stack([A(x), B(x)]).mean(0),
    lambda x: torch.stack((A(x), B(x)), dim=-1).mean(dim=(2,)),
    lambda x: torch.stack([A(x), B(x)]).sum(dim=0).div(2),
    lambda x: torch.stack([A(x), B(x)], 1),  # all of them, one beside the other
    lambda x: F.log_softmax((A(x) + B(x)) / 2, dim=1),
    lambda x: nn.functional.interpolate(((A(x) + B(x)) / 2).unsqueeze(2), 8),
    lambda x: sum(FUSION.softmax(0)[i] * layer(x) for i, layer in enumerate((A, B))),
    lambda x: torch.stack([A(x) * FUSION.exp()[0], FUSION.cos()[:1] * B(x)]).mean(0),
    lambda x: {"logits": (A(x).unsqueeze(0) / 2).squeeze(0) + B(x).float() / 2},
    in_place,
    lambda x: A(x) / 2 + 0.5 * B(tokens(x, 3)).max(1)[0],
    lambda x: B(tokens(x, 3)).amax(dim=-2).div(2) + A(tokens(x, 2)).mean(1) / 2,
]
OTHERS = [
    lambda x: A(x) + B(tokens(x, 3)).sum(1),
    lambda x: A(x) + B(tokens(x, 4)).max(2)[0],  # over the outputs
    lambda x: A(x) + B(tokens(x, 3)).min(1)[0],
    lambda x: A(x)[:, :3] + B(tokens(x, 3)).transpose(1, 2).max(1)[0],
    lambda x: A(x).sum() + B(x[:1]).sum(1).squeeze().amax(dim=0),
    lambda x: torch.cat([A(x), B(x)], dim=1),
    lambda x: A(x) - B(x),
    lambda x: A(x) + B(x).neg(),
    lambda x: A(x) + -1 * B(x),
    lambda x: A(x).relu() + B(x),
    lambda x: A(x) * B(x),
    lambda x: F.softmax(A(x), dim=1) + F.softmax(B(x), dim=1),
    lambda x: (A(x) + B(x)).relu(),
    lambda x: A(x) + B(x) + x,
    lambda x: (lambda a: a + B(a))(A(x)),  # a residual branch
    lambda x: (A(x) + B(x)) / x.norm(),
    lambda x: torch.stack([A(x), B(x)]).mean(1),
    lambda x: torch.stack([A(x), B(x)]).amax(0),
    lambda x: (A(x) + B(x)) + 1,
    lambda x: torch.add(A(x), B(x), alpha=2),
    lambda x: A(x) + x.mean() * B(x),
    lambda x: A(x) + FUSION.exp().repeat(2) * B(x),  # a factor for each output
]


@pytest.mark.parametrize("forward", MEANS)
def test_means(forward: Callable[[Tensor], object]) -> None:
    assert shares(forward) == [{"a": 0.5, "b": 0.5}]


@pytest.mark.parametrize("forward", OTHERS)
def test_what_is_no_sum_with_positive_weights(forward: Callable[[Tensor], object]) -> None:
    assert shares(forward) == [{}]


def test_weights() -> None:
    assert shares(lambda x: A(x) + 2 * (B(x) + C(x)) / 4) == [{"a": 1.0, "b": 0.5, "c": 0.5}]
    assert shares(lambda x: A(x) + B(x) + A(x + 1)) == [{"a": 2.0, "b": 1.0}]
    assert shares(lambda x: (A(x), [B(x) + C(x)])) == [{"a": 1.0}, {"b": 1.0, "c": 1.0}]
    assert shares(lambda x: C(A(x)) + B(A(x))) == [{"c": 1.0, "b": 1.0}]
