"""Propagating microbatches in lockstep, layer by layer, with one forward pass.

Every microbatch runs the model's forward in a greenlet of its own. A forward pre-hook switches back
to the caller when the microbatch reaches a point that is still pending (a layer to be solved, a
normalization to be calibrated). When all have arrived, the caller does its work and resumes them.
Greenlets share one thread, so there are no locks, no thread pools beside torch's, and an exception
in one forward surfaces in the caller.
"""

from __future__ import annotations

import contextvars
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import greenlet
from torch import Tensor, nn

from sylvinit.errors import ModelError
from sylvinit.execution.batches import Batch
from sylvinit.execution.guard import CallerModes, forward_modes, plain_modes
from sylvinit.execution.module_state import ModuleState, PrivateState
from sylvinit.execution.notes import noted
from sylvinit.execution.switches import Switches, exchange_switches, read_switches
from sylvinit.model.weight_norm import refresh_weights


@dataclass
class Arrival:
    """A microbatch waiting at a layer or normalization."""

    point: Any  # the layer or normalization
    call: int  # which call of its module this is, from 0
    x: Tensor  # its input
    args: tuple[Any, ...]  # of the module's forward, like kwargs
    kwargs: Mapping[str, Any]


class Runner:
    """One microbatch on its way through the model."""

    def __init__(self, batch: Batch, body: Callable[[Batch], None], state: ModuleState) -> None:
        self.batch = batch
        self.calls: Counter[nn.Module] = Counter()
        self.observing = False
        self.arrival: Arrival | None = None
        self._state = state
        self._private: PrivateState = {}
        self._switches: Switches = read_switches()
        self._hub = greenlet.getcurrent()
        self._greenlet = greenlet.greenlet(lambda: body(batch), self._hub)
        self._greenlet.gr_context = contextvars.copy_context()

    @property
    def finished(self) -> bool:
        """Whether the forward has returned."""
        return self._greenlet.dead

    def resume(self) -> None:
        """Run until the next pending point (then :attr:`arrival` is set) or the end."""
        self.arrival = None
        with self._own_state():
            self._greenlet.switch()

    @contextmanager
    def _own_state(self) -> Iterator[None]:
        """Switches and modules as the forward has left them at its last pause; put aside after."""
        before = exchange_switches(self._switches)
        try:
            with self._state.exchanged(self._private):
                yield
        finally:
            self._switches = exchange_switches(before)
            if self.finished:
                self._private = {}  # nobody needs what it has stored

    def pause(self, arrival: Arrival) -> None:
        """Called inside the forward: wait until resumed."""
        self.arrival = arrival
        with plain_modes():
            # The forward's own grad mode and autocast are put back on leaving this block.
            try:
                self._hub.switch()
            except greenlet.error as error:
                raise ModelError(
                    f"the forward runs {arrival.point.name} in another thread, where it cannot be "
                    "stopped; leave the layer out with exclude="
                ) from error

    def abandon(self) -> None:
        """End the forward here; its `finally` blocks run."""
        self.arrival = None
        if not self._greenlet.dead:
            with self._own_state():
                self._greenlet.throw(greenlet.GreenletExit)


class Propagation:
    """All microbatches on their way through the model.

    ``call`` runs the model on a batch, in the modes of ``caller``; ``check`` is given its output.
    ``purpose`` says what for, in the notes of exceptions.
    ``points`` are the layers or the normalization of a module, in order of need; microbatches stop
    at those that are ``pending``. :attr:`calls` counts how often modules with points have been
    called in one forward, at most.
    """

    def __init__(
        self,
        call: Callable[[Batch], Any],
        modules: Iterable[nn.Module],
        points: Mapping[nn.Module, list[Any]],
        pending: Callable[[Any], bool],
        caller: CallerModes,
        check: Callable[[Any], None],
        purpose: Callable[[], str],
    ) -> None:
        self._call, self._points, self._pending = call, points, pending
        self._caller, self._check, self._purpose = caller, check, purpose
        self._current: Runner | None = None
        self.calls: Counter[nn.Module] = Counter()
        self._modules = list(modules)
        self._state = ModuleState(())

    @contextmanager
    def attached(self) -> Iterator[ModuleState]:
        """The time during which the hooks are on the model; the state of its modules."""
        with ExitStack() as stack:
            for module in self._points:
                refresh_weights(module)  # they may have been loaded since the last forward
                handle = module.register_forward_pre_hook(self._observe, with_kwargs=True)
                stack.callback(handle.remove)
            self._state = ModuleState(self._modules)  # which has our hooks
            yield self._state

    def start(self, batches: Iterable[Batch]) -> Iterator[Runner]:
        """Runners for some batches; they do nothing until they are advanced."""
        return (Runner(batch, self._body, self._state) for batch in batches)

    def advance(self, runner: Runner) -> Arrival | None:
        """Resume a runner; its next arrival, or None at the end of its forward."""
        before, self._current = self._current, runner
        try:
            runner.resume()
        finally:
            self._current = before
        return runner.arrival

    def _body(self, batch: Batch) -> None:
        with forward_modes(self._caller):
            with noted(batch, self._purpose):
                output = self._call(batch)
            self._check(output)

    def _observe(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        runner = self._current
        if runner is None or runner.observing:
            return
        call = runner.calls[module]
        runner.calls[module] += 1
        self.calls[module] = max(self.calls[module], runner.calls[module])
        for point in self._points[module]:
            if not self._pending(point):
                continue
            # A point may call its module to compute its input: those calls are not observed.
            runner.observing = True
            try:
                x = point.input(args, kwargs)
            finally:
                runner.observing = False
            runner.pause(Arrival(point, call, x, args, kwargs))
            refresh_weights(module)  # which its own hook has computed from the old factors
