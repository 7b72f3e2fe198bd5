"""Servers that a command here needs, started with it and ended with it."""

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from tasks.errors import InputError

DEFAULT_PORT = 4200
READY_TIMEOUT_S = 120.0
GRACE_S = 5.0


@dataclass(frozen=True)
class PrefectServer:
    """A Prefect server on loopback that is starting or running."""

    port: int
    log: Path
    process: "subprocess.Popen[bytes]"

    @property
    def api_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/api"

    @property
    def ui_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def wait_until_ready(self) -> None:
        """Return once the API answers with a working database; raises InputError if it does not come up."""
        deadline = time.monotonic() + READY_TIMEOUT_S
        while time.monotonic() < deadline and self.process.poll() is None:
            if self._listens():  # and not another server, which took the port in the meantime
                with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.api_url}/ready", timeout=2):
                    return
            time.sleep(0.1)
        raise InputError(f"Prefect's server did not come up on port {self.port}. Its log: {self.log}")

    def _listens(self) -> bool:
        """Whether one of our own processes holds the port."""
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in psutil.Process(self.process.pid).children(recursive=True):
                for connection in process.net_connections("tcp"):
                    if connection.status == psutil.CONN_LISTEN and connection.laddr.port == self.port:
                        return True
        return False


@contextlib.contextmanager
def prefect_server(folder: Path, port: int | None = None, home: Path | None = None) -> Iterator[PrefectServer]:
    """Start `prefect server` on 127.0.0.1 and yield at once; it ends with the block, or with this process.

    Its database lies in `home`; none: in $PREFECT_HOME, else where Prefect keeps it.
    """
    port = port or free_port(DEFAULT_PORT)
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "prefect-server.log"
    settings = {
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_UI_API_URL": f"http://127.0.0.1:{port}/api",
        **({} if home is None else {"PREFECT_HOME": str(home)}),
    }
    server = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen(
        [sys.executable, "-m", "tasks.supervisor", "--log", str(log), "--grace-s", str(GRACE_S), "--", *server],
        stdin=subprocess.PIPE,
        env=os.environ | settings,
        start_new_session=True,
    )
    assert process.stdin is not None
    try:
        yield PrefectServer(port, log, process)
    finally:
        process.stdin.close()
        process.wait()


def free_port(preferred: int) -> int:
    """`preferred` if nobody listens there on loopback, else a port that the system picks."""
    for port in (preferred, 0):
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", port))
            return int(listener.getsockname()[1])
    raise InputError("No free port on 127.0.0.1.")
