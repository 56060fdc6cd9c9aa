"""Benchmarks store the environment they ran in."""

from __future__ import annotations

from typing import Any

import pytest
from environment import environment


def pytest_benchmark_update_machine_info(
    config: pytest.Config, machine_info: dict[str, Any]
) -> None:
    machine_info["sylvinit"] = environment()
