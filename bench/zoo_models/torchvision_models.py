"""torchvision: classifiers, segmentation models, and detectors, which are called with lists."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn
from torchvision import models

from .case import (
    CLASSES,
    SAMPLES,
    Case,
    checked_size,
    class_labels,
    count_on_meta,
    image_case,
    smooth_images,
)

_SIDE = 96
_TASKS = {
    "classification": models,
    "segmentation": models.segmentation,
    "detection": models.detection,
}


def names(most_parameters: int) -> list[str]:
    return [
        f"{task}/{name}"
        for task, module in _TASKS.items()
        for name in models.list_models(module=module)
        if count_on_meta(partial(_create, name)) <= most_parameters
    ]


def _create(name: str) -> nn.Module:
    kwargs: dict[str, Any] = {"weights": None, "num_classes": CLASSES}
    if name.startswith(("inception", "googlenet")):
        kwargs["init_weights"] = True  # without it a warning that it will be the default
    try:
        return models.get_model(name, weights_backbone=None, **kwargs)
    except TypeError:  # a classifier has no backbone
        return models.get_model(name, **kwargs)


def build(name: str, most_parameters: int) -> Case:
    task, name = name.split("/")
    model = checked_size(_create(name), most_parameters)
    if task == "classification":
        return _classifier(model)
    images = smooth_images(3, _SIDE, _SIDE)
    if task == "segmentation":
        maps = class_labels()[:, None, None].expand(SAMPLES, _SIDE, _SIDE).clone()
        maps[:, : _SIDE // 2] = 0
        batch = {"images": images, "labels": maps}
        return Case(model, batch, lambda: _segment(model, batch), forward_fn=_segment)
    return Case(model, images, lambda: _detect(model, images), forward_fn=_detect)


def _classifier(model: nn.Module) -> Case:
    """With the smallest images that it takes: transformers say theirs, Inception needs 75."""
    side = getattr(model, "image_size", _SIDE)
    return image_case(model, (3, side, side))


def _segment(model: nn.Module, batch: Any) -> Any:
    return model(batch["images"])


def _detect(model: nn.Module, images: Tensor) -> Any:
    return model(list(images))
