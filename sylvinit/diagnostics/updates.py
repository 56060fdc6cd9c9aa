"""Seeing the updates of a model's parameters, and comparing the gradients they use."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.utils.hooks import RemovableHandle

from sylvinit.diagnostics.gradients import entries, magnitude_sum, sign_difference, signs, sum_dtype
from sylvinit.errors import ModelError

# Share of sign changes and mean magnitude of the gradients of one update, 0-d; None where there is
# nothing to compute from.
Statistics = tuple[Tensor | None, Tensor | None]


@dataclass
class _Memory:
    """What one optimizer did before."""

    updates: int = 0
    signs: dict[int, Tensor] = field(default_factory=dict)  # by identity of the parameter

    def update(self, parameters: list[nn.Parameter], every: int) -> Statistics | None:
        """Statistics if this update is one to be recorded; signs are kept for the next one."""
        number, before = self.updates, self.signs
        self.updates, self.signs = number + 1, {}
        recorded, keep = number % every == 0, (number + 1) % every == 0
        if not (recorded or keep):
            return None
        changes: list[Tensor] = []
        sums: list[Tensor] = []
        compared = count = 0
        for parameter in parameters:
            if parameter.grad is None:
                continue
            grad = entries(parameter.grad)
            now = signs(grad)
            if keep:
                self.signs[id(parameter)] = now
            if not recorded:
                continue
            sums.append(magnitude_sum(grad))
            count += grad.numel()
            then = before.get(id(parameter))
            if then is not None and then.shape == now.shape and then.device == now.device:
                changes.append(sign_difference(then, now))
                compared += now.numel()
        return (_ratio(changes, 2 * compared), _ratio(sums, count)) if recorded else None


def _ratio(parts: list[Tensor], count: int) -> Tensor | None:
    if count == 0:
        return None
    device = parts[0].device
    return torch.stack([part.to(device, sum_dtype(device)) for part in parts]).sum() / count


@dataclass
class _Step:
    """A step of an optimizer that has begun and not ended."""

    optimizer: weakref.ref[Optimizer]
    parameters: list[nn.Parameter]
    counted: bool
    frame: FrameType

    def runs(self) -> bool:
        """Whether its frame is on the stack: an exception ends a step without the post hook."""
        frame = sys._getframe()
        while frame is not None and frame is not self.frame:
            frame = frame.f_back
        return frame is not None


class UpdateWatch:
    """Sees every step of every torch optimizer that holds a parameter of the model.

    ``on_update`` is called at each update, with statistics if it is one to be recorded: 0, every,
    2 every, ... of each optimizer.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        every: int,
        on_update: Callable[[Statistics | None], None],
    ) -> None:
        self._parameters = {id(parameter): parameter for parameter in parameters}
        self._every = every
        self._on_update = on_update
        self._memories: weakref.WeakKeyDictionary[Optimizer, _Memory] = weakref.WeakKeyDictionary()
        self._by_hand: _Memory | None = None
        self._step: _Step | None = None

    def attach(self) -> list[RemovableHandle]:
        """Watch all optimizers."""
        return [
            register_optimizer_step_pre_hook(self._before),
            register_optimizer_step_post_hook(self._after),
        ]

    def close(self) -> None:
        """Let go of a step that has failed, and of everything on its stack."""
        self._step = None

    @property
    def due(self) -> bool:
        """Whether the next update may be one to be recorded."""
        memories = [self._by_hand] if self._by_hand is not None else list(self._memories.values())
        return not memories or any(memory.updates % self._every == 0 for memory in memories)

    def update(self) -> None:
        """Count an update without a torch optimizer; ModelError if steps of one were counted."""
        if self._memories:
            names = sorted({type(optimizer).__name__ for optimizer in self._memories})
            raise ModelError(
                f"record.update() is for loops without a torch optimizer, but steps of "
                f"{', '.join(names)} have been counted already; leave the call out"
            )
        self._by_hand = self._by_hand or _Memory()
        self._on_update(self._by_hand.update(list(self._parameters.values()), self._every))

    def _before(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._by_hand is not None or torch.compiler.is_compiling():
            return
        held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        parameters = [self._parameters[id(p)] for p in held if id(p) in self._parameters]
        if not parameters:
            return
        if self._step is not None and not self._step.runs():
            self._step = None
        step = self._step
        if step is not None and step.optimizer() is not optimizer:
            outer = step.optimizer()
            if outer is not None and {*map(id, parameters)} & {*map(id, step.parameters)}:
                # An optimizer that wraps this one: the two steps are one update.
                if not step.counted:
                    step.counted = True
                    self._count(outer, parameters)
                return
        # args[0] is the optimizer. With a closure the gradients are computed within the step.
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        # The frame that calls this hook is the one of the step.
        frame = sys._getframe(1)
        self._step = _Step(weakref.ref(optimizer), parameters, closure is None, frame)
        if closure is None:
            self._count(optimizer, parameters)

    def _after(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        step = self._step
        if step is None or step.optimizer() is not optimizer:
            return
        self._step = None
        if not step.counted:
            self._count(optimizer, step.parameters)

    def _count(self, optimizer: Optimizer, parameters: list[nn.Parameter]) -> None:
        memory = self._memories.setdefault(optimizer, _Memory())
        with torch.no_grad():
            statistics = memory.update(parameters, self._every)
            scale = getattr(optimizer, "grad_scale", None)
            if statistics is not None and isinstance(scale, Tensor):
                # torch.amp.GradScaler leaves it to fused optimizers to divide by its scale, on
                # which signs do not depend.
                changes, magnitude = statistics
                scaled = None if magnitude is None else magnitude / scale.to(magnitude.device)
                statistics = (changes, scaled)
        self._on_update(statistics)
