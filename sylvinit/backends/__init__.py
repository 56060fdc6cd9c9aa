"""Where the linear algebra of a layer runs: one table of backends, one choice per tensor.

A backend offers the eigendecomposition of a batch of symmetric float64 matrices, on which
:mod:`sylvinit.backends.spectral` builds the solution of A W + W B = Q,
and the table says which devices it serves, whether it can run here, and why not.
"""

from __future__ import annotations

from sylvinit.backends.table import Backend, choose, table

__all__ = ["Backend", "choose", "table"]
