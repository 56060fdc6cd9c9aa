"""GradInit: scale factors that make the loss after the first step small.

Zhu, Ni, Xu, Kong, Huang, Goldstein, "GradInit: learning to initialize neural networks for stable
and efficient training", NeurIPS 2021 (arXiv:2102.08098), the variant for SGD. Each parameter tensor
w_i has a factor m_i. With g the gradient at m w of the loss of a batch S,

    if |g| > gamma: descend |g|,  else: descend L(S'; m w - eta A[g]),

on m by Adam, where S' shares half of its samples with S.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from initialisers.random import he_normal_
from initialisers.shared import Data, as_found, use_batch_statistics_


def gradinit_(
    model: nn.Module,
    data: Data,
    seed: int,
    *,
    iterations: int = 100,
    lr: float = 1e-2,
    gamma: float = 1.0,
    eta: float = 0.1,
    min_scale: float = 0.01,
    batch: int = 128,
    clip: float = 1.0,
    normalise: bool = True,
    through_step: bool = False,
) -> None:
    """Scale He's normal weights, and batch norm's, by GradInit.

    Batch norm runs with the statistics of the batch, dropout is off, images are not augmented.
    Where a default comes from:

    - the authors' scripts for CIFAR-10 (github.com/zhuchen03/gradinit): gamma, eta, min_scale,
      clip, batch (two halves of 64), normalise; the division of the loss by eta, which matters
      through ``clip``; no derivative through the step. Adam has a first moment for each of the two
      goals and one second moment for both, betas 0.9 and 0.999, as there.
    - lr: the authors tune it for every network, 1e-3 to 1e-1 (1e-3 for ResNet-110 and 1e-1 for
      VGG-19, both with batch norm); 1e-2 is in the middle, and not tuned.
    - iterations: theirs are 390, an epoch of CIFAR-10; 100 so that ResNet-20 takes minutes on a
      CPU. As Adam moves a factor by about lr an iteration, 100 of them change it by 1 at most.

    Args:
        model: overwritten; the running statistics of batch norm are its defaults afterwards.
        data: what batches are drawn from, reshuffled after each pass.
        seed: of the weights and of the batches.
        iterations: updates of the factors.
        lr: of Adam.
        gamma: bound on the norm of the gradient.
        eta: step size of the simulated step.
        min_scale: least factor of a weight; that of a bias is 0.
        batch: samples of S and of S', two halves of each; with too few data a half is all of them.
        clip: bound on each entry of the gradient of the factors; 0 for none.
        normalise: A[g] is g / |g|, as in the authors' scripts; else g itself.
        through_step: let the derivative in m pass through A[g] as well.
    """
    he_normal_(model, data, seed)
    generator = torch.Generator().manual_seed(seed)
    with as_found(model, seed) as device:
        use_batch_statistics_(model)
        network = _ScaledNetwork(model)
        floor = [0.0 if name.endswith("bias") else min_scale for name in network.start]
        factors = _Factors(torch.tensor(floor, device=device), lr, clip)
        halves = _half_batches(data, max(batch // 2, 1), generator, device)
        for _ in range(iterations):
            first, second = next(halves), next(halves)
            scales = factors.scales.clone().requires_grad_()
            parameters = network.parameters(scales)
            gradients = torch.autograd.grad(
                network.loss(parameters, _join(first, second)),
                list(parameters.values()),
                create_graph=True,
                materialize_grads=True,
            )
            norm = torch.stack([g.square().sum() for g in gradients]).sum().sqrt()
            if float(norm.detach()) > gamma:
                factors.update("norm", torch.autograd.grad(norm, scales)[0])
                continue
            stepped: dict[str, Tensor] = {}
            for (name, value), gradient in zip(parameters.items(), gradients, strict=True):
                step = gradient / norm if normalise else gradient
                stepped[name] = value - eta * (step if through_step else step.detach())
            loss = network.loss(stepped, _join(first, next(halves))) / eta
            factors.update("loss", torch.autograd.grad(loss, scales)[0])
        network.write_(factors.scales)


class _ScaledNetwork:
    """A network as a function of its parameters, and these of one factor for each tensor."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self.start = {name: value.detach().clone() for name, value in model.named_parameters()}
        # Copies: batch norm writes to its running statistics.
        self._buffers = {name: value.detach().clone() for name, value in model.named_buffers()}

    def parameters(self, scales: Tensor) -> dict[str, Tensor]:
        """The parameters, each times its factor."""
        return {
            name: scale * value
            for (name, value), scale in zip(self.start.items(), scales.unbind(), strict=True)
        }

    def loss(self, parameters: dict[str, Tensor], batch: Data) -> Tensor:
        """Cross entropy."""
        inputs, labels = batch
        outputs = functional_call(self._model, parameters | self._buffers, (inputs,))
        return F.cross_entropy(outputs, labels)

    @torch.no_grad()
    def write_(self, scales: Tensor) -> None:
        """Write the scaled parameters to the model."""
        own = dict(self._model.named_parameters())
        for name, value in self.parameters(scales).items():
            own[name].copy_(value)


@dataclass
class _Factors:
    """The factors, and Adam with a first moment for each of two goals."""

    floor: Tensor
    lr: float
    clip: float
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    scales: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.scales = torch.ones_like(self.floor)
        self._first = {goal: torch.zeros_like(self.floor) for goal in ("norm", "loss")}
        self._second = torch.zeros_like(self.floor)
        self._steps = dict.fromkeys(self._first, 0)

    def update(self, goal: str, gradient: Tensor) -> None:
        """One step along the gradient of a goal."""
        beta1, beta2 = self.betas
        if self.clip > 0:
            gradient = gradient.clamp(-self.clip, self.clip)
        self._steps[goal] += 1
        first = self._first[goal].mul_(beta1).add_(gradient, alpha=1 - beta1)
        second = self._second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        mean = first / (1 - beta1 ** self._steps[goal])
        size = (second / (1 - beta2 ** sum(self._steps.values()))).sqrt()
        self.scales = torch.maximum(self.scales - self.lr * mean / (size + self.eps), self.floor)


def _half_batches(
    data: Data, size: int, generator: torch.Generator, device: torch.device
) -> Iterator[Data]:
    """Batches of ``size`` (of all samples, if there are fewer), shuffled anew each pass."""
    inputs, labels = data
    size = min(size, len(labels))
    while True:
        order = torch.randperm(len(labels), generator=generator)
        for chosen in order[: len(order) // size * size].split(size):
            yield (
                inputs[chosen.to(inputs.device)].to(device),
                labels[chosen.to(labels.device)].to(device),
            )


def _join(first: Data, second: Data) -> Data:
    return torch.cat((first[0], second[0])), torch.cat((first[1], second[1]))
