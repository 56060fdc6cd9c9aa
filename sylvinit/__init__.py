"""Initialize neural networks from data: each layer's weight solves a Sylvester equation.

>>> report = sylvinit.initialize_(model, loader)        # every Conv, Linear, attention projection
>>> report = sylvinit.initialize_head_(model, loader)   # only the classifier
>>> x = sylvinit.solve_sylvester(a, b, q)               # A X + X B = Q: batched, differentiable
>>> report = sylvinit.correlated_init_(model)           # random filters, spatially correlated
"""

from __future__ import annotations

from sylvinit import correlated, diagnostics, errors, priors
from sylvinit.codes import Code, Latent, available_codes, register_code
from sylvinit.correlated.apply import correlated_init_
from sylvinit.correlated.draw import correlated_normal_
from sylvinit.correlated.estimate import filter_correlation
from sylvinit.correlated.inputs import input_correlation
from sylvinit.errors import SylvinitError, SylvinitWarning
from sylvinit.initialize import initialize_, initialize_head_
from sylvinit.model import Layer, RowLayer, register_layer
from sylvinit.moments.patch_moments import patch_moments
from sylvinit.moments.statistics import LayerStatistics
from sylvinit.moments.streaming import PatchMoments
from sylvinit.report import LayerReport, Report
from sylvinit.sylvester.factors import SylvesterFactors, sylvester_factor
from sylvinit.sylvester.lowrank import solve_sylvester_lowrank
from sylvinit.sylvester.lyapunov import solve_lyapunov
from sylvinit.sylvester.solve import solve_sylvester, sylvester_residual

__version__ = "0.2.0"

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
    "correlated",
    "correlated_init_",
    "correlated_normal_",
    "diagnostics",
    "errors",
    "filter_correlation",
    "initialize_",
    "initialize_head_",
    "input_correlation",
    "patch_moments",
    "priors",
    "register_code",
    "register_layer",
    "solve_lyapunov",
    "solve_sylvester",
    "solve_sylvester_lowrank",
    "sylvester_factor",
    "sylvester_residual",
]
