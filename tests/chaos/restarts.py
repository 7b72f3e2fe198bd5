"""An S3 server that can be killed at any moment and comes back over the same folder, at the same port."""

import os
import signal
import threading
import time
from contextlib import ExitStack
from pathlib import Path

from infra import local_s3

AWAY_S = 1.0


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
            os.kill(self._server.pid, number)
            self._block.close()
            time.sleep(AWAY_S)
            self._server = self._block.enter_context(local_s3.start(self._folder, self._server.port))

    def __enter__(self) -> "RestartableS3":
        return self

    def __exit__(self, *_: object) -> None:
        self._block.close()
