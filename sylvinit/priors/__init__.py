"""What is known of spatial filters before training: correlation matrices, built-in and of files.

>>> sylvinit.priors.available()
['resnet10-cifar10', ...]
>>> corr = sylvinit.priors.load("resnet10-cifar10")
>>> corr.filters, corr.source
"""

from __future__ import annotations

from sylvinit.priors.files import available, load, save

__all__ = ["available", "load", "save"]
