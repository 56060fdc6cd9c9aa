"""What is left alone, and why: a line in the report for each, and a warning for each kind."""

from __future__ import annotations

from torch import nn
from torch.nn.utils import parametrize

from sylvinit.execution.survey import Survey
from sylvinit.model import Layer
from sylvinit.model.batch_norm import Norm, reason_to_skip
from sylvinit.model.obstacles import (
    ADDED_ZEROS,
    BYPASSED,
    FLAT,
    QUANTIZED,
    Obstacle,
    module_obstacle,
    modules_of_flat_parameters,
    weight_obstacle,
)
from sylvinit.options import Options
from sylvinit.report import LayerReport


class Skips:
    """Reports of what is left alone, by the names of layers and modules.

    Those with an obstacle have a remark of its kind, for which there is one warning.
    """

    def __init__(self, survey: Survey, options: Options) -> None:
        self.reports: dict[str, LayerReport] = {}
        self._survey, self._options = survey, options
        self._flat = modules_of_flat_parameters(survey.names)
        self._added_zeros = _added_zeros(survey, options)

    def add(self, reason: str | Obstacle, *points: Layer | Norm) -> None:
        """Leave layers or normalizations alone."""
        for point in points:
            self.reports[point.name] = _skipped(point.name, point.kind, reason)

    def reason(self, point: Layer | Norm) -> str | Obstacle | None:
        """Why a layer or normalization that ran and is asked for is left alone, seen by itself."""
        if point.module in self._flat:
            return FLAT
        if isinstance(point, Norm):
            return reason_to_skip(point.module)
        reason = point.obstacle() or point.reason_to_keep()
        return ADDED_ZEROS if reason is None and point in self._added_zeros else reason

    def add_rest(self) -> None:
        """Modules that hold parameters and of which nothing has been said yet."""
        survey, reports = self._survey, self.reports
        said: set[nn.Module] = set(survey.points)
        for module, points in survey.points.items():
            said.update(point.owner for point in points if isinstance(point, Layer))
            for point in points:
                if module not in survey.calls and point.name not in reports:
                    self.add(self._why_not_called(point), point)
        said = with_parametrizations(said)
        for module, name in survey.names.items():
            reason = None if module in said else self._reason_of_rest(module)
            if reason is not None:
                # Modules in TorchScript know what they were made of.
                kind = getattr(module, "original_name", type(module).__name__)
                report = _skipped(name, kind, reason)
                if not self._is_asked_for(name):
                    report.remarks.clear()
                reports.setdefault(name, report)

    def _why_not_called(self, point: Layer | Norm) -> str | Obstacle:
        wanted = self._is_asked_for(point.name)
        wanted &= isinstance(point, Layer) or self._options.calibrate_norm
        if wanted and point.module in self._survey.bypassed:
            return BYPASSED
        return "its forward was not called"

    def _reason_of_rest(self, module: nn.Module) -> str | Obstacle | None:
        """Why a module with parameters and no layer is left alone; None for one without any."""
        held = [name for name, _ in module.named_parameters(recurse=False)]
        if held and module in self._flat:
            return FLAT
        obstacle = module_obstacle(module)
        if obstacle is not None:
            return obstacle if held or obstacle is QUANTIZED else None
        obstacles = [weight_obstacle(module, name) for name in held]
        kept = f"no layer type is registered for {type(module).__name__}; its parameters are kept"
        kept = self._survey.recognized.reasons.get(module, kept)
        return next(filter(None, obstacles), reason_to_skip(module) or (kept if held else None))

    def _is_asked_for(self, name: str) -> bool:
        return self._options.selects(name) and not self._options.kept


def _skipped(name: str, kind: str, reason: str | Obstacle) -> LayerReport:
    if isinstance(reason, str):
        return LayerReport(name, kind, "skipped", reason)
    return LayerReport(name, kind, "skipped", reason.reason, remarks={reason.kind: kind})


def _added_zeros(survey: Survey, options: Options) -> set[Layer]:
    """Layers of zeros that are to stay: those of adapters, unless they alone are asked for."""
    found = {
        layer
        for layer in survey.layers
        if layer.module in survey.addends and not bool(layer.get_weight().any())
    }
    asked = {layer for layer in survey.layers if options.selects(layer.name)}
    named = {layer for layer in found if layer.name == options.head}
    return set() if options.include and asked <= found else found - named


def with_parametrizations(modules: set[nn.Module]) -> set[nn.Module]:
    """The modules, and those that hold the tensors behind their parametrized weights."""
    found = set(modules)
    for module in modules:
        if parametrize.is_parametrized(module):
            found.update(module.parametrizations.modules())  # type: ignore[union-attr]
    return found
