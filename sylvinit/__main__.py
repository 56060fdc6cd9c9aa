"""``python -m sylvinit``."""

import sys

from sylvinit.cli import main

if __name__ == "__main__":
    sys.exit(main())
