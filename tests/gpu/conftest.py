"""Tests on a GPU. Without one they are collected and skipped, and say why."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest
import torch

from sylvinit.backends import extension


@pytest.fixture(autouse=True, scope="module")
def _gpu() -> None:
    if reason := extension.reason():
        pytest.skip(f"needs a GPU and the CUDA extension: {reason}")


@pytest.fixture
def float32_products(_gpu: None) -> Iterator[None]:
    """cuDNN's convolutions in full float32, which is not the default, so that the CPU compares."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


@contextmanager
def _no_waiting() -> Iterator[None]:
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.fixture
def no_waiting(_gpu: None) -> Callable[[], AbstractContextManager[None]]:
    """A context in which an operation that makes the host wait for the GPU is an error."""
    return _no_waiting
