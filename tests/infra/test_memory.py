"""Peak memory of a process tree, against what a child is known to take."""

import subprocess
import sys

from infra.memory import PeakMemory

TAKE_300_MIB = "import time; block = bytearray(300 * 2**20); time.sleep(0.6)"


def test_a_childs_memory_counts() -> None:
    with PeakMemory(interval_s=0.05) as before:
        pass
    with PeakMemory(interval_s=0.05) as memory:
        subprocess.run([sys.executable, "-c", TAKE_300_MIB], check=True)
    assert 300 * 2**20 < memory.peak_bytes - before.peak_bytes < 400 * 2**20
