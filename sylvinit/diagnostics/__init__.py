"""Diagnostics of initialization and training.

>>> with sylvinit.diagnostics.monitor(model) as record:      # in any training loop
...     train(model)
>>> print(record)
>>> sylvinit.diagnostics.draw_record(record, "training.png")
"""

from __future__ import annotations

from sylvinit.diagnostics.filter_profiles import draw_filter_profiles, filter_profiles
from sylvinit.diagnostics.gradients import gradient_magnitude, gradient_sign_changes
from sylvinit.diagnostics.monitor import monitor
from sylvinit.diagnostics.pictures import draw_layers, draw_record
from sylvinit.diagnostics.rank import effective_rank
from sylvinit.diagnostics.record import Record

__all__ = [
    "Record",
    "draw_filter_profiles",
    "draw_layers",
    "draw_record",
    "effective_rank",
    "filter_profiles",
    "gradient_magnitude",
    "gradient_sign_changes",
    "monitor",
]
