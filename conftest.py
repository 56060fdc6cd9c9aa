"""What all tests share, those of tests/ and of bench/tests/."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import threadpoolctl
import torch
from hypothesis import HealthCheck, settings

# Examples of each property; tests with expensive ones take a part of this number.
common = {"deadline": None, "suppress_health_check": list(HealthCheck)}
settings.register_profile("quick", max_examples=50, **common)
settings.register_profile("thorough", max_examples=1000, **common)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--thorough",
        action="store_true",
        help="also run the tests marked thorough, and 20 times as many examples of each property",
    )


def pytest_configure(config: pytest.Config) -> None:
    settings.load_profile("thorough" if config.getoption("thorough") else "quick")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not any(item.path.name.startswith("bench_") for item in items):
        # On matrices as small as here, threads cost more than they do; see the mark "threads".
        torch.set_num_threads(1)
        threadpoolctl.threadpool_limits(1)
        os.environ["OMP_NUM_THREADS"] = "1"  # of processes that tests start
    for item in items:
        if item.get_closest_marker("thorough") and not config.getoption("thorough"):
            item.add_marker(pytest.mark.skip(reason="runs with --thorough"))


@pytest.fixture(autouse=True)
def _threads(request: pytest.FixtureRequest) -> Iterator[None]:
    marker = request.node.get_closest_marker("threads")
    if marker is None:
        yield
        return
    torch.set_num_threads(*marker.args)
    with threadpoolctl.threadpool_limits(*marker.args):
        yield
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def cifar10_folder() -> Path:
    """The folder that contains cifar-10-batches-py; skips the test where there is none."""
    folder = Path(os.environ.get("SYLVINIT_DATA", "."))
    if not (folder / "cifar-10-batches-py").is_dir():
        pytest.skip("set SYLVINIT_DATA to the folder that contains cifar-10-batches-py")
    return folder
