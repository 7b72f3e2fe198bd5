"""An S3 server that can be killed at any moment and comes back over the same folder, at the same port."""

import os
import signal
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path

from infra import local_s3
from tasks.errors import InputError

AWAY_S = 1.0
ENDS_WITHIN_S = 30.0
NUM_STARTS = 20


class RestartableS3:
    """OpenStack Swift as the project runs it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._block = ExitStack()
        self._lock = threading.Lock()
        self._server = self._block.enter_context(local_s3.start(folder))
        self.environment = self._server.environment

    def kill_and_restart(self, number: signal.Signals) -> None:
        """Send it the signal, and start another a second later."""
        with self._lock:
            pid = self._server.pid
            at_last = threading.Timer(ENDS_WITHIN_S, os.kill, (pid, signal.SIGKILL))
            with suppress(ProcessLookupError):
                os.kill(pid, number)
            at_last.start()
            self._block.close()
            at_last.cancel()
            for num_left in reversed(range(NUM_STARTS)):
                time.sleep(AWAY_S)
                try:
                    self._server = self._block.enter_context(local_s3.start(self._folder, self._server.port))
                    return
                except InputError:  # a connection of somebody else may have got the port for a moment
                    if not num_left:
                        raise

    def __enter__(self) -> "RestartableS3":
        return self

    def __exit__(self, *_: object) -> None:
        self._block.close()
