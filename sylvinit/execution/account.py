"""What was done, for people: reports in the order of execution, and warnings."""

from __future__ import annotations

from collections.abc import Iterable

from sylvinit.errors import ModelError
from sylvinit.execution.attempt import Attempt, Run
from sylvinit.execution.experts import experts_left_alone
from sylvinit.execution.skips import Skips
from sylvinit.execution.survey import SURVEY_SAMPLES, Survey
from sylvinit.model.obstacles import REMEDIES, USED_BESIDE
from sylvinit.options import Options
from sylvinit.report import LayerReport, Report

_SHOWN = 8  # layers of a kind of skip in one warning
_MISSED = "it did not run on the {} survey samples, which decide what is solved"

# What each kind of weakness that a layer remarks on means, or what can be done about it.
_ADVICE = {
    "dead inputs": "features constant in these data: borders, units that are never active",
    "rank < d_out": "on these data the outputs depend on each other linearly, whatever the weights",
    "fewer rows than features": "more samples help, or more patches= where a sample has several",
    "features of unlike scale": "standardize them, or take head_code='onehot'",
    "features too small for lam": "scale them, or take a larger lam or head_code='logistic'",
    "near-singular equation": "the solution of least norm was taken; nothing need be done",
    **REMEDIES,
}


def nothing_to_solve(survey: Survey, options: Options) -> ModelError:
    """The error for a model without any layer that can be solved."""
    left = Skips(survey, options)
    left.add_rest()
    register = ["register its type with sylvinit.register_layer"]
    return ModelError(
        "the forward pass reached no layer that can be solved (Linear, Conv, MultiheadAttention, "
        "...); "
        + "; ".join(_texts_by_kind(left.reports.values()) or register)
        + survey.recognized.unknown(survey.names)
    )


def report_of(run: Run, attempt: Attempt) -> Report:
    """Reports in execution order, those of layers that never ran last, and all warnings."""
    survey, worklist, options = run.survey, attempt.worklist, attempt.options
    reports = attempt.reports
    report = Report(head=worklist.head, candidates=attempt.candidates)
    skipped = dict(worklist.skips.reports)
    uncalled = survey.most_calls.keys() - survey.calls.keys()
    late = [point.name for module in uncalled for point in survey.points[module]]
    late = sorted(name for name in late if options.selects(name) and not options.kept)
    missed = _MISSED.format("two" if survey.samples == SURVEY_SAMPLES else survey.samples)
    for name in late:
        skipped[name].reason = missed
    if late:
        worklist.warnings.append(f"skipped, for {missed}: {', '.join(late)}")
    untold = dict(reports)
    for point in survey.order:
        task = worklist.task_of.get(id(point))
        if id(task) in untold:
            done = untold.pop(id(task))
            most = survey.most_calls[point.module]
            if survey.calls[point.module] == 1 and most > 1:
                done.notes.append(
                    "done from its first call alone: it ran once on the first samples, but up to "
                    f"{most} times on others"
                )
            if done.status == "solved" and point.module in survey.bypassed:
                done.remarks[USED_BESIDE.kind] = done.kind
            report.layers.append(done)
        elif point.name in skipped:
            report.layers.append(skipped.pop(point.name))
        else:
            text = "reached by the first samples alone but by no whole microbatch"
            if task is not None and id(task) in reports:
                text = f"shares its weight with {task.name}"
            report.layers.append(LayerReport(point.name, point.kind, "skipped", text))
    report.layers.extend(skipped.values())
    few_rows = experts_left_alone(survey, worklist, options, report.layers)
    texts = [few_rows] if few_rows else []
    report.warnings.extend([*worklist.warnings, *texts, *_texts_by_kind(report.layers)])
    first = run.batches[0]
    given = first.labels is not None and not run.forward.requires_labels(first.inputs)
    # Where include and exclude leave the head out, nobody expects its labels to be used.
    if given and not (worklist.uses_labels or worklist.head_left_out):
        report.warnings.append("labels were given but no code used them")
    return report


def _texts_by_kind(layers: Iterable[LayerReport]) -> list[str]:
    """One text for each kind of remark, with the layers that have it."""
    kinds: dict[str, list[str]] = {}
    for layer in layers:
        for kind, detail in layer.remarks.items():
            kinds.setdefault(kind, []).append(f"{layer.title} ({detail})")
    texts: list[str] = []
    for kind, places in kinds.items():
        shown = _SHOWN if kind in REMEDIES else 3
        more = f" and {len(places) - shown} more" if len(places) > shown else ""
        texts.append(f"{kind}: {', '.join(places[:shown])}{more}; {_ADVICE[kind]}")
    return texts
