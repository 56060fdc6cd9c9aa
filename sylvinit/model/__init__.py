"""Layer types: where a module keeps its weight, and which part of its input it multiplies.

Importing this package fills the registry with the built-in types.
"""

from __future__ import annotations

from sylvinit.model.attention import attention_layers
from sylvinit.model.convolution import ConvLayer, ConvTransposeLayer, SamePaddedConvLayer
from sylvinit.model.layer import (
    Layer,
    RowLayer,
    layers_as,
    layers_of,
    overrides_forward,
    register_layer,
    registered_type,
)
from sylvinit.model.linear import LinearLayer, TransposedLinearLayer
from sylvinit.model.standardized import StandardizedLayer, gains_of

__all__ = [
    "ConvLayer",
    "ConvTransposeLayer",
    "Layer",
    "LinearLayer",
    "RowLayer",
    "SamePaddedConvLayer",
    "StandardizedLayer",
    "TransposedLinearLayer",
    "attention_layers",
    "gains_of",
    "layers_as",
    "layers_of",
    "overrides_forward",
    "register_layer",
    "registered_type",
]
