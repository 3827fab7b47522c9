from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import gc
from lorabench.estimator.training.libraries import import_libraries

import_libraries()
import bitsandbytes, peft, torch, transformers
assert gc.isenabled()
assert gc.get_freeze_count() > 100_000  # objects of the libraries, which no collection looks through
"""


def test_garbage_is_not_looked_for_among_the_libraries_and_is_elsewhere() -> None:
    ran = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
