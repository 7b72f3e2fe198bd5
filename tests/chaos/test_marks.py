"""Processes are found by their mark wherever they went."""

import os
import subprocess
import sys
import time
import uuid

from tests.chaos.marks import MARK, below, marked, seconds_until_gone

ORPHAN = "import subprocess; subprocess.Popen(['sleep', '30'], start_new_session=True)"


def test_an_orphan_in_a_session_of_its_own_is_found_and_waited_for() -> None:
    mark = uuid.uuid4().hex
    subprocess.run([sys.executable, "-c", ORPHAN], env=os.environ | {MARK: mark}, check=True)
    [orphan] = marked(mark)
    assert orphan.says("sleep")
    assert seconds_until_gone([orphan], limit_s=0.2) is None
    os.kill(orphan.pid, 9)
    assert seconds_until_gone([orphan]) is not None
    assert marked(mark) == []


def test_one_that_has_ended_but_was_not_collected_is_gone() -> None:
    mark = uuid.uuid4().hex
    with subprocess.Popen(["sleep", "0.1"], env=os.environ | {MARK: mark}):
        time.sleep(0.5)
        assert marked(mark) == []


def test_descendants_are_told_from_others() -> None:
    mark = uuid.uuid4().hex
    command = ["sh", "-c", "sh -c 'sleep 30; true' & wait"]
    with subprocess.Popen(command, env=os.environ | {MARK: mark}) as process:
        while len(processes := marked(mark)) < 3:
            time.sleep(0.02)
        [first] = [one for one in processes if one.pid == process.pid]
        assert {one.pid for one in below(first, processes)} == {one.pid for one in processes} - {process.pid}
        for one in processes:
            os.kill(one.pid, 9)
