"""Preset "auto": which start a network gets, by how well a head does on unseen samples.

The candidates are the network as it came, the same with batch norm statistics of the data, and its
body initialized as "best". Each is run on the data, and its scores are the held-out error of a
linear head on the features that it gives (solve/held_out.py), and over how many directions these
spread. Where labels say nothing of the features (none, or none that suit the head), a rule decides
from what is known of kinds of networks.
"""

from __future__ import annotations

import math
from dataclasses import replace

from torch import nn

from sylvinit.errors import NonFiniteError, SolverError
from sylvinit.execution.attempt import Attempt, Run
from sylvinit.execution.survey import Survey
from sylvinit.execution.units import LayerUnit
from sylvinit.execution.worklist import Worklist
from sylvinit.model.batch_norm import NORM_TYPES, Norm
from sylvinit.options import Options
from sylvinit.report import Candidate
from sylvinit.solve.held_out import HeldOut

# Standard errors by which the network's own start has to be ahead of "best" to be kept: with a
# hundred samples the error says little, and on it alone half of what "best" gains would be lost.
LEAD = 2.0
# How many times as many directions the features of "best" may spread over. Where they spread over
# more, rows that were scaled to one output variance have made noise as loud as what tells the
# samples apart, layer by layer, and training ends lower whatever the error says before it.
SPREAD = 2.5

_BETTER = "its own start is kept: a head does as well on the features of the network as it came"
_UNKNOWN = "its own start is kept: nothing tells that another would be better"


def choose(run: Run, best: Worklist) -> Attempt:
    """Write the candidate of least held-out error; ``best`` is the worklist of preset "best".

    The network's own start is kept where it is ahead of "best" by more than LEAD standard errors of
    their difference, and where the features of "best" spread over more than SPREAD times as many
    directions. A candidate whose activations are not finite, or whose equations cannot be solved,
    is out.

    Raises:
        NonFiniteError, SolverError: of "best", where no candidate is left.
    """
    units = _units(best)
    if all(unit.task.head for unit in units):
        return run.attempt(best)  # there is no body to choose
    if not any(unit.is_scored for unit in units):
        return _by_rule(run, best)
    own = _own_starts(best)
    if best.options.dry_run:
        attempt = run.attempt(best)
        attempt.candidates = [Candidate(name) for name in (*own, "best")]
        return attempt
    failures: list[Exception] = []
    scores: dict[str, HeldOut] = {}
    candidates: dict[str, Candidate] = {}
    attempt = None
    for name, options in (*own.items(), ("best", best.options)):
        run.undo()
        worklist = best if options is best.options else run.worklist(options)
        candidates[name] = candidate = Candidate(name)
        attempt = None
        try:
            attempt = run.attempt(worklist, f"sylvinit, {name}")
        except (NonFiniteError, SolverError) as error:
            failures.append(error)
            candidate.reason = str(error)
            continue
        score = next((unit.held_out for unit in _units(worklist) if unit.is_scored), None)
        if score is None:
            candidate.reason = "too few samples or classes, or features that never vary"
            continue
        scores[name] = score
        candidate.error, candidate.accuracy = score.error, score.accuracy
    if not scores:
        run.undo()
        if len(failures) == len(candidates):
            raise failures[-1]
        attempt = _by_rule(run, best)
        attempt.candidates = list(candidates.values())
        return attempt
    chosen = _chosen(scores, candidates)
    if chosen != "best" or attempt is None:
        run.undo()
        attempt = run.attempt(run.worklist(own[chosen]), f"sylvinit, {chosen}")
    candidates[chosen].chosen = True
    attempt.candidates = list(candidates.values())
    return attempt


def _chosen(scores: dict[str, HeldOut], candidates: dict[str, Candidate]) -> str:
    """The name of the start to be written; standard errors and reasons go to the candidates."""
    own = {name: score for name, score in scores.items() if name != "best"}
    if not own or "best" not in scores:
        return next(iter(scores)) if not own else _least(own)
    best, kept = scores["best"], _least(own)
    behind = best.errors - own[kept].errors
    candidates["best"].standard_error = error = float(behind.std()) / math.sqrt(len(behind))
    widest = max(score.spread for score in own.values())
    if best.spread > SPREAD * widest:
        candidates["best"].reason = (
            f"its features spread over {best.spread:.0f} directions, {best.spread / widest:.1f} "
            "times as many as those of its own start: mostly noise"
        )
        return kept
    if best.error >= 1:
        candidates["best"].reason = "its features tell no more of the labels than their mean"
        return kept
    return kept if float(behind.mean()) > LEAD * error else "best"


def _least(scores: dict[str, HeldOut]) -> str:
    return min(scores, key=lambda name: scores[name].error)


def _units(worklist: Worklist) -> list[LayerUnit]:
    return [task for task in worklist.in_order() if isinstance(task, LayerUnit)]


def _own_starts(best: Worklist) -> dict[str, Options]:
    """The network's own start by name: as it came, and with statistics of the data."""
    kept = replace(best.options, kept=_BETTER)
    starts = {"own": replace(kept, calibrate_norm=False)}
    if any(isinstance(task, Norm) for task in best.in_order()):
        starts["own, calibrated"] = kept
    return starts


# --------------------------------------------------------------------------------- without labels


def _by_rule(run: Run, best: Worklist) -> Attempt:
    """Without a score: "best" for the networks that it is known to help, else the own start."""
    if _is_known_to_gain(run.survey):
        return run.attempt(best)
    worklist = run.worklist(replace(best.options, kept=_UNKNOWN, keeps_head=True))
    worklist.warnings.append(
        "no labels suit the head, so that no start can be compared with another, and the network's "
        "own start is kept: data-driven weights are known to help networks of convolutions with "
        "batch norm or without any normalization; preset='best' initializes this one all the same"
    )
    return run.attempt(worklist)


def _is_known_to_gain(survey: Survey) -> bool:
    """Whether the network is one of convolutions, normalized by batch norm alone or not at all."""
    windows = [
        layer.geometry for layer in survey.layers if layer.geometry and layer.geometry.taps > 1
    ]
    return bool(windows) and not any(_normalizes_samples(module) for module in survey.names)


def _normalizes_samples(module: nn.Module) -> bool:
    """Whether a module divides each sample by a norm of its own; by its name, for there are many.

    So do the networks built of attention, with or without a module for it.
    """
    name = type(module).__name__.lower()
    return "norm" in name and not isinstance(module, (*NORM_TYPES, nn.Identity))
