"""Looking for NaN and Inf without waiting for a GPU.

On the CPU a defect is raised where it is seen. On other devices the answer stays there until it is
asked for, so that the next microbatch can be launched.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sylvinit.errors import NonFiniteError


def looks_at_once(x: Tensor) -> bool:
    """Whether a look at a tensor costs no waiting."""
    return x.is_cpu


class InputWatch:
    """Whether all inputs of a layer were finite, and not only the patches that were taken."""

    def __init__(self) -> None:
        self._finite: Tensor | None = None

    def look(self, x: Tensor, name: str, kind: str) -> None:
        """Look at an input; raise NonFiniteError if it is on the CPU and holds NaN or Inf."""
        if not x.is_floating_point() or x.numel() == 0:
            return
        if looks_at_once(x):
            # A sum is the cheapest look at all of it.
            if not (bool(x.sum(dtype=torch.float32).isfinite()) or bool(x.isfinite().all())):
                raise non_finite_input(name, kind)
            return
        finite = torch.stack(torch.aminmax(x.detach())).isfinite().all()
        self._finite = finite if self._finite is None else self._finite & finite

    def check(self, name: str, kind: str) -> None:
        """Raise NonFiniteError if an input held NaN or Inf, which may mean to wait for a GPU."""
        if self._finite is not None and not bool(self._finite):
            raise non_finite_input(name, kind)


def non_finite_input(name: str, kind: str) -> NonFiniteError:
    """The error for a layer's input."""
    return NonFiniteError(
        f"NaN or Inf in the input of {name} ({kind}), or values whose squares overflow; look at "
        "what runs before it, and at the scale of the data"
    )


class OutputWatch:
    """No NaN may reach the model's output past what the layers in between have sampled.

    Inf is let through: masked logits are -inf on purpose.
    """

    def __init__(self) -> None:
        self._nan: Tensor | None = None

    def look(self, output: Any) -> None:
        """Look at a tensor or a container of them; raise NonFiniteError for NaN on the CPU."""
        if isinstance(output, dict):
            output = tuple(output.values())
        if isinstance(output, (tuple, list)):
            for item in output:
                self.look(item)
        elif isinstance(output, Tensor) and output.is_floating_point():
            nan = output.detach().isnan().any()
            self._nan = nan if self._nan is None else self._nan | nan.to(self._nan.device)
            if looks_at_once(output):
                self.check()

    def check(self) -> None:
        """Raise NonFiniteError if an output held NaN, which may mean to wait for a GPU."""
        if self._nan is not None and bool(self._nan):
            raise NonFiniteError("NaN in the output of the model; look at its last layers")
