"""transformers: every class for images, sequences and causal language that its tables name."""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

import torch
import transformers
from torch import nn
from transformers import CONFIG_MAPPING
from transformers.models.auto import modeling_auto

from .case import (
    CLASSES,
    SAMPLES,
    TOKENS,
    Case,
    NotBuiltError,
    TooLargeError,
    checked_size,
    class_labels,
    count_on_meta,
    smooth_images,
)
from .shrink import END, LADDER, PAD, SIDE, START, VOCABULARY, Shrinkage, small_fields

logging.getLogger("transformers").setLevel(logging.ERROR)

_TABLES = {
    "image": modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    "text": modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    "causal": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
}


def names(most_parameters: int) -> list[str]:
    return [f"{task}/{kind}" for task, table in _TABLES.items() for kind in sorted(table)]


def build(name: str, most_parameters: int) -> Case:
    """The smallest of the model's shrunken configurations whose forward runs.

    Raises:
        NotBuiltError: none runs; the reason is that of the smallest.
    """
    task, kind = name.split("/")
    classes = _TABLES[task][kind]
    class_name = classes if isinstance(classes, str) else classes[0]
    reason = ""
    for how in LADDER:
        try:
            model_class = getattr(transformers, class_name)
            config = _config(model_class.config_class or CONFIG_MAPPING[kind], how)
            count = count_on_meta(partial(model_class, config))
            if count > most_parameters:
                raise TooLargeError(f"{count:,} parameters")
            case = _case(task, checked_size(model_class(config), most_parameters), config)
            with torch.no_grad():
                case.model.eval()
                case.forward()
            case.model.train()
            return case
        except ImportError as error:  # a library that is not there, whatever the sizes
            raise NotBuiltError(str(error)) from error
        except Exception as error:  # whatever a configuration, a constructor or a forward raises
            reason = reason or f"{type(error).__name__}: {error}"
    raise NotBuiltError(reason)


def _config(config_class: Any, how: Shrinkage) -> Any:
    config = config_class(**small_fields(config_class, how), num_labels=CLASSES)
    config.use_cache = False
    for name, token in (("pad_token_id", PAD), ("decoder_start_token_id", START)):
        if getattr(config, name, None) is None:
            setattr(config, name, token)
    return config


def _case(task: str, model: nn.Module, config: Any) -> Case:
    data: dict[str, Any]
    if task == "image":
        vision = getattr(config, "vision_config", config)
        side = getattr(vision, "image_size", SIDE)
        height, width = side if isinstance(side, (list, tuple)) else (side, side)
        labels = class_labels()
        images = smooth_images(getattr(vision, "num_channels", 3), height, width)
        data = {"pixel_values": images, "labels": labels}
    else:
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randint(4, VOCABULARY - 1, (SAMPLES, TOKENS), generator=generator)
        if task == "text":
            tokens[:, -1] = END  # encoder-decoders read the class at it
            labels = class_labels()
            data = {"input_ids": tokens, "labels": labels}
        else:
            labels = None
            shifted = torch.cat([tokens[:, 1:], torch.full((SAMPLES, 1), -100)], 1)
            data = {"input_ids": tokens, "labels": shifted}
    inputs = {key: value for key, value in data.items() if key != "labels"}
    return Case(model, data, lambda: model(**inputs), labels)
