from __future__ import annotations

import sys

from gpu.processes import execute


def test_what_a_program_printed_before_the_limit_is_kept() -> None:
    done = execute([sys.executable, "-c", "import time; print('before'); time.sleep(60)"], 3)
    assert (done.code, done.output) == (None, "before\n")
    assert done.seconds < 30


def test_a_program_that_ends_has_its_status() -> None:
    done = execute(
        [sys.executable, "-c", "import os; print(os.environ['OWN']); exit(3)"], 60, env={"OWN": "1"}
    )
    assert (done.code, done.output) == (3, "1\n")
