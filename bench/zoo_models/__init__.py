"""The models that libraries offer, built with random weights, each with data of its kind.

Every library's module has ``names()``, the models to try, and ``build(name)``, one of them.
"""

from __future__ import annotations

import importlib
from types import ModuleType

LIBRARIES = ("timm", "torchvision", "transformers")


def library(name: str) -> ModuleType:
    """The module of a library, which imports the library itself."""
    return importlib.import_module(f"zoo_models.{name}_models")
