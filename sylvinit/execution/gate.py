"""Preset "auto": which start a network gets, by how well a head does on unseen samples.

The candidates are the network as it came, the same with batch norm statistics of the data, and its
body initialized as "best". Each is run on the data, and its scores are the held-out error of a
linear head on the features that it gives (solve/held_out.py), and over how many directions these
spread. Where no head is solved from labels, a rule decides from what is known of kinds of networks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from sylvinit.errors import NonFiniteError, SolverError
from sylvinit.execution.attempt import Attempt, Run
from sylvinit.execution.guard import same_random_numbers
from sylvinit.execution.survey import Survey
from sylvinit.execution.units import LayerUnit
from sylvinit.execution.worklist import Worklist
from sylvinit.model.batch_norm import NORM_TYPES, Norm
from sylvinit.options import Options
from sylvinit.report import Candidate
from sylvinit.solve.held_out import HeldOut

OWN, CALIBRATED, BEST = "own", "own, calibrated", "best"

# Standard errors by which the network's own start has to be ahead of "best" to be kept: with a
# hundred samples the error says little, and on it alone half of what "best" gains would be lost.
LEAD = 1.5
# Where the features of "best" spread over so many times as many directions, a head on them says
# little. Rows scaled to one output variance make all directions equally loud, layer by layer: these
# may be noise, and "best" has to be ahead by LEAD standard errors.
SPREAD = 2.5
# Not so in networks without batch norm that read their inputs in windows, of which a sample has
# many, where the own start has folded the features into so few directions that its error, too, is
# above this: training finds its way from "best" all the same, and less so from there. A network
# that was trained is below. (With batch norm, RegNet ends lower with "best", a ResNet-18 higher.)
FOLDED = 0.5

_KEPT = "its own start is kept"
_NORMS = (
    nn.LayerNorm,
    nn.RMSNorm,
    nn.GroupNorm,
    nn.LocalResponseNorm,
    nn.modules.instancenorm._InstanceNorm,
)


def choose(run: Run, plan: Worklist) -> Attempt:
    """Write the better start; ``plan`` is the worklist of preset "best".

    The network's own start is kept where it is ahead of "best" by more than LEAD standard errors of
    their difference. Where the features of "best" spread over more than SPREAD times as many
    directions, it is kept unless "best" is ahead by as much, or the network has no batch norm,
    reads its inputs in windows, and its own error is above FOLDED. A candidate whose activations
    are not finite, or whose equations cannot be solved, is out.

    Raises:
        NonFiniteError, SolverError: of "best", where no candidate is left.
    """
    best = plan.options
    if all(unit.task.head for unit in _units(plan)):
        return run.attempt(plan)  # there is no body to choose
    starts = {OWN: replace(best, kept=_KEPT, calibrate_norm=False)}
    if any(isinstance(task, Norm) for task in plan.in_order()):
        starts[CALIBRATED] = replace(starts[OWN], calibrate_norm=True)
    starts[BEST] = best
    if not (_is_scored(plan) and _is_scored(run.worklist(starts[OWN]))):
        return _by_rule(run, best, "no head is solved from labels", keeps_head=not best.head_code)
    if best.dry_run:
        attempt = run.attempt(run.worklist(best))  # that of the own start has taken back its gains
        attempt.candidates = [Candidate(name) for name in starts]
        return attempt
    comparison = _Comparison({name: Candidate(name) for name in starts}, _may_fold(run.survey))
    attempt = None
    for name, options in starts.items():
        run.undo()
        attempt = comparison.of(run, name, options)
    chosen, why = comparison.winner()
    if chosen is None:
        run.undo()
        attempt = _by_rule(run, best, why, keeps_head=False)
        chosen = OWN if attempt.options.kept else BEST
    elif chosen != BEST or attempt is None:
        run.undo()
        again = replace(starts[chosen], gated=False)
        with same_random_numbers():
            attempt = run.attempt(run.worklist(again), f"sylvinit, {chosen}")
    comparison.candidates[chosen].chosen = True
    comparison.candidates[chosen].reason = why
    attempt.candidates = list(comparison.candidates.values())
    return attempt


@dataclass
class _Comparison:
    """Candidates and their scores, by name."""

    candidates: dict[str, Candidate]
    folds: bool  # whether the own start may fold features into too few directions
    scores: dict[str, HeldOut] = field(default_factory=dict)
    failures: dict[str, Exception] = field(default_factory=dict)

    def of(self, run: Run, name: str, options: Options) -> Attempt | None:
        """Write a candidate and score it; None where it fails."""
        candidate = self.candidates[name]
        worklist = run.worklist(options)
        try:
            with same_random_numbers():  # every candidate finds those of the first
                attempt = run.attempt(worklist, f"sylvinit, {name}")
        except (NonFiniteError, SolverError) as error:
            self.failures[name] = error
            candidate.reason = str(error)
            return None
        score = next(unit.held_out for unit in _units(worklist) if unit.is_scored)
        if score is None:
            candidate.reason = "too few samples or classes, or features that never vary"
        else:
            self.scores[name] = score
            candidate.error, candidate.accuracy = score.error, score.accuracy
            candidate.spread = score.spread
        return attempt

    def winner(self) -> tuple[str | None, str]:
        """The name of the start to be written, None without any score, and why.

        Raises:
            NonFiniteError, SolverError: no candidate is left.
        """
        if len(self.failures) == len(self.candidates):
            raise self.failures[BEST]
        scores, candidates = self.scores, self.candidates
        if not scores:
            return None, "too few samples or classes, or features that never vary"
        kept = min((name for name in scores if name != BEST), key=self._error, default=None)
        if kept is None:
            return BEST, ""
        if BEST not in scores:
            return kept, f"'best' has no score ({candidates[BEST].reason})"
        behind = _difference(scores[BEST], scores[kept])
        error = float(behind.std()) / math.sqrt(len(behind))
        candidates[BEST].standard_error = error
        spread = scores[BEST].spread / max(scores[name].spread for name in scores if name != BEST)
        lead, why = LEAD, "a head does better on its features than on those of 'best'"
        if spread > SPREAD:
            spreads = f"spread over {spread:.1f} times as many directions"
            if self.folds and scores[kept].error > FOLDED:
                return BEST, f"its features {spreads}, from inputs that are read in windows"
            lead, why = -LEAD, "a head does not do better by 1.5 standard errors on the features of"
            why += f" 'best', which {spreads}"
        return (kept, why) if float(behind.mean()) > lead * error else (BEST, "")

    def _error(self, name: str) -> float:
        return self.scores[name].error


def _difference(a: HeldOut, b: HeldOut) -> torch.Tensor:
    """Errors of a without those of b, on the samples that both have rows of."""
    of_a = torch.isin(a.samples, b.samples)
    of_b = torch.isin(b.samples, a.samples)
    return a.errors[of_a] - b.errors[of_b]


def _units(worklist: Worklist) -> list[LayerUnit]:
    return [task for task in worklist.in_order() if isinstance(task, LayerUnit)]


def _is_scored(worklist: Worklist) -> bool:
    return any(unit.is_scored for unit in _units(worklist))


def _may_fold(survey: Survey) -> bool:
    """Whether there is no batch norm and the first layer is a convolution: also of patches."""
    geometry = survey.layers[0].geometry
    windows = geometry is not None and geometry.taps > 1
    return windows and not any(isinstance(module, NORM_TYPES) for module in survey.names)


# --------------------------------------------------------------------------------- without a score


def _by_rule(run: Run, best: Options, why: str, *, keeps_head: bool) -> Attempt:
    """Preset "best" for the networks that it is known to help, else the own start."""
    best = replace(best, gated=False)
    if _is_known_to_gain(run.survey):
        return run.attempt(run.worklist(best))
    own = replace(best, kept=f"{_KEPT}: {why}", calibrate_norm=False, keeps_head=keeps_head)
    worklist = run.worklist(own)
    worklist.warnings.append(
        f"no start can be compared with another ({why}), and the network's own is kept: "
        "data-driven weights are known to help networks of convolutions with batch norm or without "
        "any normalization; preset='best' initializes this one all the same"
    )
    return run.attempt(worklist)


def _is_known_to_gain(survey: Survey) -> bool:
    """Whether the network is one of convolutions, normalized by batch norm alone or not at all."""
    windows = [
        layer.geometry for layer in survey.layers if layer.geometry and layer.geometry.taps > 1
    ]
    return bool(windows) and not any(_normalizes_samples(module) for module in survey.names)


def _normalizes_samples(module: nn.Module) -> bool:
    """Whether a module divides each sample by a norm of its own.

    Of the many that libraries define, by the name; blocks that have a norm inside do not count, nor
    do parametrizations and layers without a scale.
    """
    if isinstance(module, _NORMS):
        return True
    named = "norm" in type(module).__name__.lower() and not isinstance(module, NORM_TYPES)
    own = any(True for _ in module.parameters(recurse=False))
    return named and own and not any(True for _ in module.children())
