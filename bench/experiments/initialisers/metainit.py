"""MetaInit: norms of the weights at which gradient descent changes the gradient little.

Dauphin and Schoenholz, "MetaInit: initializing learning by learning to initialize", NeurIPS 2019.
With g the gradient of the loss, H its Hessian and N the number of parameters, the gradient quotient

    GQ = 1/N | (g - H g) / (g + eps sign(g)) - 1 |_1      (eq. 1; sign(0) = 1)

is minimised over the norms of the weight tensors, by SGD with momentum on the sign of its
derivative, on random inputs with random labels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from initialisers.random import he_normal_
from initialisers.shared import Data, as_found, use_batch_statistics_
from sylvinit.errors import NonFiniteError


def metainit_(
    model: nn.Module,
    data: Data,
    seed: int,
    *,
    steps: int = 50,
    lr: float = 0.1,
    momentum: float = 0.9,
    eps: float = 1e-5,
    batch: int = 32,
    min_scale: float = 0.01,
    batch_statistics: bool = False,
) -> None:
    """Tune the norms of He's normal weights by MetaInit.

    lr, momentum and eps are the defaults of the paper's code (figure 2), where GQ is that of all
    parameters, and the norms of those with two axes or more are tuned, as here. Deviations:

    - steps: the paper's code has 500; 50 so that ResNet-20 takes minutes on a CPU;
    - batch: the paper's code leaves it to its caller;
    - min_scale: the paper's code has no least norm; there a norm may cross zero, which turns the
      signs of the weights.

    Batch norm: the paper's code is in evaluation mode, where an untrained batch norm is the
    identity, so the norms are tuned as if there were none. With ``batch_statistics`` it is as in
    training, where the norms of the weights before it change no output, only the curvature.

    Args:
        model: overwritten; batch norm has its defaults afterwards.
        data: only the shape of an image is used.
        seed: of the weights, the random inputs and the random labels.
        steps: updates of the norms.
        lr: change of a norm by one step without momentum.
        momentum: of the changes.
        eps: of the quotient.
        batch: random inputs a step.
        min_scale: least norm, as a share of that at the start.
        batch_statistics: of batch norm, see above.

    Raises:
        NonFiniteError: the gradient quotient is NaN or Inf.
    """
    he_normal_(model, data, seed)
    generator = torch.Generator().manual_seed(seed)
    with as_found(model, seed) as device:
        model.eval()
        if batch_statistics:
            use_batch_statistics_(model)
        own = dict(model.named_parameters())
        values = {name: value.detach().clone().requires_grad_() for name, value in own.items()}
        buffers = {name: value.detach().clone() for name, value in model.named_buffers()}
        weights = [value for value in values.values() if value.ndim >= 2]
        least = [min_scale * float(weight.detach().norm()) for weight in weights]
        changes = [0.0] * len(weights)
        for step in range(steps):
            inputs = torch.randn((batch, *data[0].shape[1:]), generator=generator).to(device)
            outputs = functional_call(model, values | buffers, (inputs,))
            labels = torch.randint(outputs.shape[1], (batch,), generator=generator).to(device)
            loss = F.cross_entropy(outputs, labels)
            quotient = gradient_quotient(loss, list(values.values()), eps)
            if not bool(quotient.isfinite()):
                raise NonFiniteError(f"the gradient quotient is not finite at step {step}")
            slopes = torch.autograd.grad(quotient, weights)
            for i, (weight, slope) in enumerate(zip(weights, slopes, strict=True)):
                with torch.no_grad():
                    sign = float(torch.sign((weight * slope).sum()))
                    changes[i] = momentum * changes[i] - lr * sign
                    norm = float(weight.norm())
                    if norm > 0:
                        weight.mul_(max(norm + changes[i], least[i]) / norm)
        with torch.no_grad():
            for name, value in values.items():
                own[name].copy_(value)


def gradient_quotient(loss: Tensor, parameters: Sequence[Tensor], eps: float = 1e-5) -> Tensor:
    """The gradient quotient of a loss, with a graph.

    Args:
        loss: a scalar.
        parameters: what it is differentiated by, twice.
        eps: see the module.

    Returns:
        A scalar; 0 where the gradient does not change to first order, 1 where H g = g.
    """
    gradients = torch.autograd.grad(loss, parameters, create_graph=True, materialize_grads=True)
    half_square = torch.stack([g.square().sum() for g in gradients]).sum() / 2
    products = torch.autograd.grad(
        half_square, parameters, create_graph=True, materialize_grads=True
    )
    total = loss.new_zeros(())
    for gradient, product in zip(gradients, products, strict=True):
        offset = eps * (2 * (gradient >= 0).to(gradient.dtype) - 1)
        total = total + ((gradient - product) / (gradient + offset) - 1).abs().sum()
    return total / sum(parameter.numel() for parameter in parameters)
