from __future__ import annotations

from collections.abc import Iterator

import pytest
from fake_cuda import FakeCuda, FakeModule, install

from sylvinit.backends import cusolver


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[FakeModule, FakeCuda]]:
    yield install(monkeypatch)
    cusolver.library.cache_clear()
    cusolver._side_stream.cache_clear()


@pytest.fixture
def module(fakes: tuple[FakeModule, FakeCuda]) -> FakeModule:
    return fakes[0]


@pytest.fixture
def cuda(fakes: tuple[FakeModule, FakeCuda]) -> FakeCuda:
    return fakes[1]
