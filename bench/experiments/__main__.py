"""The experiments of the two papers, from one command.

    SYLVINIT_DATA=DIR python bench/experiments list
    SYLVINIT_DATA=DIR python bench/experiments run few_shot_cifar10 digits --workers 2 --minutes 60
    python bench/experiments status
    python bench/experiments report --out docs/results.md

DIR contains cifar-10-batches-py; `pip install '.[experiments]'` brings what the others need.
Networks that were trained before are looked for in the folder that SYLVINIT_CHECKPOINTS names.
Every finished run is stored at once, and only missing runs are done, so the command can be stopped
and repeated at any time, also on several machines (--shard). The report shows cells whose seeds are
all there, with --partial the others, too.
"""

from __future__ import annotations

import sys
from pathlib import Path

# This folder is on the path already: it is what Python was told to run.
sys.path.insert(1, str(Path(__file__).resolve().parent.parent))

from cli import main

if __name__ == "__main__":
    sys.exit(main(description=__doc__))
