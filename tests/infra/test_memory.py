"""Peak memory of a process tree, against what a child is known to take."""

import subprocess
import sys
import time

from infra.memory import PeakMemory

TAKE_300_MIB = "import time; block = bytearray(300 * 2**20); time.sleep(1)"


def test_a_childs_memory_counts() -> None:
    with PeakMemory(interval_s=0.05) as before:
        time.sleep(0.5)
    with PeakMemory(interval_s=0.05) as memory:
        subprocess.run([sys.executable, "-c", TAKE_300_MIB], check=True)
    assert 290 * 2**20 < memory.peak_bytes - before.peak_bytes < 400 * 2**20
