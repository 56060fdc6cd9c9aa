"""Fixtures of several folders."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from rank_pool import RankPool


@pytest.fixture(scope="module")
def pool() -> Iterator[RankPool]:
    """Processes for a module's tests (of the mark needs_gloo)."""
    pool = RankPool()
    yield pool
    pool.close()
