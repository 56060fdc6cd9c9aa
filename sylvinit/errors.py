"""Typed errors and warnings.

Every error is a :class:`SylvinitError` and also the built-in exception a caller would catch anyway.
Messages say which argument, what was expected, what came, and what to do about it.
"""

from __future__ import annotations

import torch


class SylvinitError(Exception):
    """Base class of every error raised on purpose by this package."""


class OptionError(SylvinitError, ValueError):
    """An argument has a value outside its domain (``lam``, ``patches``, a name pattern, ...)."""


class OptionTypeError(SylvinitError, TypeError):
    """An argument has the wrong type."""


class DataError(SylvinitError, ValueError):
    """The data are empty, inconsistent, not finite, or of a form that cannot be read."""


class LabelError(DataError):
    """Labels are missing, of the wrong dtype or length, or out of range."""


class ModelError(SylvinitError, ValueError):
    """The model cannot be initialized as given (meta device, mixed devices, no such head, ...)."""


class RowLayoutError(SylvinitError, ValueError):
    """Rows of a layer's input cannot be assigned to samples (time first, folded windows, ...)."""


class NonFiniteError(SylvinitError, FloatingPointError):
    """NaN or Inf appeared in the input of a layer."""


class SolverError(SylvinitError, RuntimeError):
    """No route produced a solution of the Sylvester equation within its residual bound."""


class MatrixError(SylvinitError, ValueError):
    """A matrix of an equation has the wrong shape, structure or device, or is not finite."""


class CorrelationError(SylvinitError, ValueError):
    """A matrix is not the correlation matrix that is needed, or does not fit a kernel."""


class SingularEquationError(SolverError, torch.linalg.LinAlgError):
    """A X + X B = Q has no unique solution: an eigenvalue of A is minus one of B."""


class BackendError(SylvinitError, RuntimeError):
    """The requested backend cannot run here."""


class DeviceMemoryError(SylvinitError, torch.OutOfMemoryError):
    """A GPU has too little memory for a computation."""


class RankError(SylvinitError, RuntimeError):
    """Another rank of the process group has failed, or ranks do not agree on what is done."""


class SylvinitWarning(UserWarning):
    """Something in the data or the model makes the result less useful than it could be."""


class AccuracyWarning(SylvinitWarning):
    """A solution may have lost more than half of its digits to rounding in the input."""
