"""The user's data as microbatches: what the model is called with, labels, padding."""

from sylvinit.execution.batches.batch import Batch
from sylvinit.execution.batches.forward import Forward
from sylvinit.execution.batches.padding import Padding
from sylvinit.execution.batches.read import read_batches

__all__ = [
    "Batch",
    "Forward",
    "Padding",
    "read_batches",
]
