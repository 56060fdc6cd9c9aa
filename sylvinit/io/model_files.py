"""Models from ``pkg.mod:factory`` and their weights from and to files, for the command line."""

from __future__ import annotations

import importlib
import operator
import os
import sys
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_model, save_model
from torch import Tensor, nn

from sylvinit.errors import DataError, ModelError, OptionError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def build_model(spec: str) -> nn.Module:
    """Import and call a factory, with the current directory on the search path.

    Args:
        spec: ``pkg.mod:factory``; the factory takes no arguments. A module that has been built
            already will do as well.

    Returns:
        The model. Errors inside the user's own code are not caught: they need their traceback.

    Raises:
        OptionError: ``spec`` has another form, or there is no such module or attribute.
        ModelError: the factory returns no ``torch.nn.Module``.
    """
    module_name, _, attribute = spec.partition(":")
    if not module_name or not attribute:
        raise OptionError(f"model: expected PKG.MOD:FACTORY, got {spec!r}.")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # A module that *it* fails to import is a defect of the user's, not of ``spec``.
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise OptionError(
            f"model: there is no module {error.name!r}, neither installed nor in {os.getcwd()}."
        ) from error
    try:
        factory: Any = operator.attrgetter(attribute)(module)
    except AttributeError as error:
        raise OptionError(f"model: {module_name} has no {attribute!r}.") from error
    model = factory if isinstance(factory, nn.Module) or not callable(factory) else factory()
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"model: expected {spec} to return a torch.nn.Module, got {type(model).__name__}."
        )
    return model


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a state dict, strictly, from ``.safetensors`` or, with ``weights_only``, another file.

    Raises:
        DataError: the file is missing or damaged, or its names or shapes are not the model's.
    """
    if not path.is_file():
        raise DataError(f"weights: there is no file {path}.")
    try:
        if path.suffix == ".safetensors":
            load_model(model, path)
        else:
            model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # parsers raise nearly anything on a damaged file
        raise DataError(
            f"weights: {path} does not hold the weights of this model: {error}"
        ) from error


def save_weights(model: nn.Module, path: Path) -> None:
    """Write the state dict as safetensors; tensors that share memory are written once.

    ``safetensors.torch.load_model`` reads the file back, shared tensors included. An existing file
    is replaced when the new one is complete.

    Raises:
        OptionError: the file cannot be written.
    """
    _replace(path, lambda unfinished: save_model(model, str(unfinished), {"format": "pt"}))


def write_text(text: str, path: Path) -> None:
    """Write ``text`` to ``path``, replacement and errors as in :func:`save_weights`."""
    _replace(path, lambda unfinished: unfinished.write_text(text + "\n", encoding="utf-8"))


def check_output(option: str, path: Path, suffix: str) -> None:
    """OptionError, before a computation, for another suffix, no folder, or no permission."""
    if path.suffix != suffix:
        raise OptionError(f"{option}: expected a file ending in {suffix}, got {path}.")
    if not path.parent.is_dir():
        raise OptionError(f"{option}: there is no folder {path.parent}; make it first.")
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise OptionError(f"{option}: {path} cannot be written.")


def move(model: nn.Module, device: str) -> None:
    """Move a model to a device; OptionError where there is no such device, or it is full."""
    try:
        model.to(torch.device(device))
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built with CUDA
        raise OptionError(f"device: cannot move the model to {device!r}: {error}") from error


def like_parameters(inputs: Tensor, model: nn.Module) -> Tensor:
    """Move inputs to the device of the model and, if they are floats, to its precision.

    The first floating-point parameter decides; without one nothing changes.
    """
    for parameter in model.parameters():
        if parameter.is_floating_point():
            dtype = parameter.dtype if inputs.is_floating_point() else inputs.dtype
            return inputs.to(parameter.device, dtype)
    return inputs


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    """Write beside ``path`` and rename, so that half a file never stands there."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(unfinished)
        unfinished.replace(path)
    except (OSError, ValueError, RuntimeError) as error:
        raise OptionError(f"cannot write {path}: {error}") from error
    finally:
        unfinished.unlink(missing_ok=True)
