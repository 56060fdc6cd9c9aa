"""Experts: layers to which the network sends rows as it likes, many to one and none to another."""

from __future__ import annotations

from collections.abc import Sequence

from sylvinit.execution.survey import Survey
from sylvinit.execution.units import LayerUnit
from sylvinit.execution.worklist import Worklist
from sylvinit.model import Layer
from sylvinit.model.modules import family
from sylvinit.options import Options
from sylvinit.report import LayerReport


def experts_left_alone(
    survey: Survey, worklist: Worklist, options: Options, reports: Sequence[LayerReport]
) -> str | None:
    """A warning that counts the experts with too few rows; reports of those without any say so.

    Layers that no microbatch has reached are experts if others of their family are.
    """
    units = {task for task in worklist.task_of.values() if isinstance(task, LayerUnit)}
    routed = {layer.name for unit in units if unit.is_expert for layer in unit.layers}
    kinds = {family(name) for name in routed}
    idle = {
        point.name
        for module, points in survey.points.items()
        for point in points
        if module not in survey.most_calls and isinstance(point, Layer)
        if family(point.name) in kinds and options.selects(point.name)
    }
    unknown = {  # subclasses, which would have to run on the survey's samples
        name
        for name in map(survey.names.__getitem__, survey.recognized.uncalled)
        if family(name) in kinds and options.selects(name)
    }
    experts = routed | idle | unknown
    left = [x for x in reports if x.status == "skipped" and x.name in experts]
    if not left:
        return None
    for report in left:
        if report.name in idle:
            report.reason = "an expert that got no rows"
        elif report.name in unknown:
            report.reason = f"an expert that got no rows of the first {survey.samples} samples"
    names = ", ".join(report.title for report in left[:3])
    more = f" and {len(left) - 3} more" if len(left) > 3 else ""
    return (
        f"{len(left)} of {len(experts)} layers of experts are left alone, which got fewer "
        f"rows than they have outputs, or none: {names}{more}; more samples help"
    )
