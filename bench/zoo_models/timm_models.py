"""timm: of every family the smallest model.

A family is a file of timm's and the letters that a name begins with: byobnet's repvgg and mobileone
are two.
"""

from __future__ import annotations

import re
from functools import partial

import timm
import torch

from .case import CLASSES, Case, checked_size, count_on_meta, image_case

_SIDE = 96  # pixels, where a model leaves the choice


def names(most_parameters: int) -> list[str]:
    smallest: dict[tuple[str, str], tuple[int, str]] = {}
    for module in timm.list_modules():
        for name in timm.list_models(module=module):
            size = count_on_meta(partial(timm.create_model, name, num_classes=CLASSES))
            prefix = re.match("[a-z]*", name)
            family = module, prefix.group() if prefix else name
            if size <= most_parameters:
                smallest[family] = min(smallest.get(family, (size, name)), (size, name))
    return sorted(name for _, name in smallest.values())


def build(name: str, most_parameters: int) -> Case:
    model = checked_size(timm.create_model(name, num_classes=CLASSES), most_parameters)
    channels, *own = model.default_cfg["input_size"]
    case = image_case(model, (channels, *own))
    if not model.default_cfg.get("fixed_input_size", False) and min(own) > _SIDE:
        small = image_case(model, (channels, _SIDE, _SIDE))
        try:
            with torch.no_grad():
                model.eval()
                small.forward()
            return small
        except Exception:  # the side has to be a multiple of something, or a window is larger
            return case
        finally:
            model.train()
    return case
