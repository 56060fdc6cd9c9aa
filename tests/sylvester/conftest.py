from __future__ import annotations

import pytest
from helpers import single_thread


@pytest.fixture(scope="module")
def one_thread():
    """For matrices as small as here, threads of NumPy's and SciPy's BLAS cost more than they do."""
    with single_thread():
        yield
