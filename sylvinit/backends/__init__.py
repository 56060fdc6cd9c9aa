"""Where the linear algebra of a layer runs: one table of backends, one choice per tensor.

A backend offers the eigendecomposition of a batch of symmetric float64 matrices, two of them at
once, and the division by sums of eigenvalues. The table says which devices a backend serves,
whether it can run here, and why not.
"""

from __future__ import annotations

from sylvinit.backends.table import Backend, choose, table

__all__ = ["Backend", "choose", "table"]
