"""Peak memory of a process tree, against what a child is known to take."""

import subprocess
import sys

TAKE_300_MIB = "import time; block = bytearray(300 * 2**20); time.sleep(1)"
SMALL_PARENT = f"""
import subprocess, sys
from infra.memory import PeakMemory
with PeakMemory(interval_s=0.05) as memory:
    subprocess.run([sys.executable, "-c", {TAKE_300_MIB!r}], check=True)
print(memory.peak_bytes)
"""


def test_a_childs_memory_counts() -> None:
    printed = subprocess.run([sys.executable, "-c", SMALL_PARENT], capture_output=True, text=True, check=True).stdout
    assert 300 * 2**20 < int(printed) < 400 * 2**20
