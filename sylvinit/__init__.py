"""Initialise neural networks from data: each layer's weight solves a Sylvester equation.

>>> report = sylvinit.initialize_(model, loader)        # every Conv, Linear, attention projection
>>> report = sylvinit.initialize_head_(model, loader)   # only the classifier
>>> x = sylvinit.solve_sylvester(a, b, q)               # A X + X B = Q: batched, differentiable
"""

from __future__ import annotations

from sylvinit import errors
from sylvinit.codes import Code, Latent, available_codes, register_code
from sylvinit.errors import SylvinitError, SylvinitWarning
from sylvinit.initialize import initialize_, initialize_head_
from sylvinit.layers import Layer, RowLayer, register_layer
from sylvinit.moments import PatchMoments
from sylvinit.patches.patch_moments import patch_moments
from sylvinit.report import LayerReport, Report
from sylvinit.statistics import LayerStatistics
from sylvinit.sylvester.factors import SylvesterFactors, sylvester_factor
from sylvinit.sylvester.lowrank import solve_sylvester_lowrank
from sylvinit.sylvester.solve import solve_sylvester, sylvester_residual

__version__ = "0.1.0"

__all__ = [
    "Code",
    "Latent",
    "Layer",
    "LayerReport",
    "LayerStatistics",
    "PatchMoments",
    "Report",
    "RowLayer",
    "SylvesterFactors",
    "SylvinitError",
    "SylvinitWarning",
    "__version__",
    "available_codes",
    "errors",
    "initialize_",
    "initialize_head_",
    "patch_moments",
    "register_code",
    "register_layer",
    "solve_sylvester",
    "solve_sylvester_lowrank",
    "sylvester_factor",
    "sylvester_residual",
]
