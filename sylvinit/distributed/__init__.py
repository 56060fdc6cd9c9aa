"""Many processes that solve one network: what they say to each other, by torch.distributed.

>>> ranks = join(process_group, model, stacklevel=2)
>>> with ranks.together():  # if one rank raises here, all do
...     counts = ranks.gather("samples", count)
...     ranks.commit()
"""

from __future__ import annotations

from sylvinit.distributed.group import check_group, is_sharded, join
from sylvinit.distributed.messages import Message
from sylvinit.distributed.ranks import ALONE, Ranks, interrupts_deferred

__all__ = ["ALONE", "Message", "Ranks", "check_group", "interrupts_deferred", "is_sharded", "join"]
