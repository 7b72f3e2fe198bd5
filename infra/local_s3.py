"""A real S3 server on loopback, for a machine without one: OpenStack Swift, data kept over restarts.

    python -m infra.local_s3 start|stop|status|env --folder .local/s3

`start` runs it in the background; `eval "$(python -m infra.local_s3 env)"` makes a shell's S3 clients use it.
"""

import argparse
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import boto3
from botocore.client import Config
from botocore.exceptions import BotoCoreError, ClientError

from infra.swift_server import ADDRESS, KEYS_FILE, LOCK_FILE, PORT_TAKEN, REGION, RUNNING_ALREADY, STATE_FILE
from tasks.errors import InputError

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 10.0
LOG_FILE = "server.log"
ROOT = Path(__file__).parents[1]
FOLDER = ROOT / ".local" / "s3"
STORE = "s3://alignment"
STORE_VARIABLE = "ALIGNMENT_STORE"


@dataclass(frozen=True)
class LocalS3:
    """A running server: its process, its port, and the keys that it takes."""

    folder: Path
    pid: int
    port: int

    @property
    def endpoint(self) -> str:
        """Where it listens."""
        return f"http://{ADDRESS}:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """The variables that make every AWS client use this server; they override those of another account."""
        keys = json.loads((self.folder / KEYS_FILE).read_text())
        return {
            "AWS_ENDPOINT_URL_S3": self.endpoint,
            "AWS_ACCESS_KEY_ID": keys["access_key"],
            "AWS_SECRET_ACCESS_KEY": keys["secret_key"],
            "AWS_SESSION_TOKEN": "",
            "AWS_REGION": REGION,
            "AWS_DEFAULT_REGION": REGION,
            "NO_PROXY": ",".join(dict.fromkeys([*_unproxied(), ADDRESS])),
        }


@contextmanager
def start(folder: Path, port: int | None = None) -> Iterator[LocalS3]:
    """A server over `folder` for the length of the `with`; it also ends if this process is killed.

    One that runs there already is used, and left running. Raises InputError if Swift is not installed, if
    `port` is taken, or if the server does not come up.
    """
    if server := running(folder):
        yield server
        return
    with _spawn(folder, port, detached=False) as process:
        try:
            yield _ready(folder, process, port)
        finally:
            process.terminate()


def start_detached(folder: Path, port: int | None = None) -> LocalS3:
    """A server over `folder` that outlives this process; one that runs there already is returned."""
    return running(folder) or _ready(folder, _spawn(folder, port, detached=True), port)


def stop(folder: Path) -> bool:
    """End the server over `folder`, whoever started it; False if none ran."""
    server = running(folder)
    if server is None:
        return False
    os.kill(server.pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while _is_locked(folder):
        if time.monotonic() > deadline:
            os.kill(server.pid, signal.SIGKILL)
        time.sleep(0.02)
    return True


def running(folder: Path) -> LocalS3 | None:
    """The server over `folder`, or None; one that is just starting is waited for."""
    folder = folder.absolute()
    deadline = time.monotonic() + START_TIMEOUT_S
    while _is_locked(folder) and time.monotonic() < deadline:
        try:
            state = json.loads((folder / STATE_FILE).read_text())
            return LocalS3(folder, state["pid"], state["port"])
        except FileNotFoundError:
            time.sleep(0.05)
    return None


def use_if_running(folder: Path = FOLDER) -> str | None:
    """The store on the local server, which this process's AWS clients then use; None if no server runs."""
    server = running(folder)
    if server is None:
        return None
    os.environ.update(server.environment)
    return STORE


def main() -> None:
    """The command line: start, stop, status or env."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["start", "stop", "status", "env"])
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the server keeps everything")
    parser.add_argument("--port", type=int, help="default: the last one if it is free, else any")
    arguments = parser.parse_args()
    try:
        sys.exit(_run(arguments.command, arguments.folder, arguments.port))
    except InputError as error:
        sys.exit(f"error: {error}")


def _run(command: str, folder: Path, port: int | None) -> int:
    if command == "stop":
        print("stopped" if stop(folder) else f"no server runs over {folder}")
        return 0
    server = running(folder)
    if command == "start":
        print(
            f"running already at {server.endpoint}" if server else f"started at {start_detached(folder, port).endpoint}"
        )
        return 0
    if server is None:
        print(
            f"no server runs over {folder}; start it with: python -m infra.local_s3 start --folder {folder}",
            file=sys.stderr,
        )
        return 1
    lines = [f"export {name}={value}" for name, value in server.environment.items()]
    print("\n".join(lines) if command == "env" else f"running at {server.endpoint}, process {server.pid}")
    return 0


def _unproxied() -> list[str]:
    return [name for name in os.environ.get("NO_PROXY", "").split(",") if name]


def _spawn(folder: Path, port: int | None, detached: bool) -> subprocess.Popen[bytes]:
    if find_spec("swift") is None:
        raise InputError("OpenStack Swift, the local S3 server, is not installed. Run: pip install '.[s3]'")
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    command = [sys.executable, "-m", "infra.swift_server", str(folder.absolute()), "--port", str(port or 0)]
    with open(folder / LOG_FILE, "ab", opener=_open_private) as log:
        return subprocess.Popen(
            command if detached else [*command, "--until-eof"],
            cwd=ROOT,
            stdin=subprocess.DEVNULL if detached else subprocess.PIPE,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, mode=0o600)


def _ready(folder: Path, process: subprocess.Popen[bytes], port: int | None) -> LocalS3:
    """The server once it has answered a signed request."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        ended = process.poll()
        if ended == PORT_TAKEN:
            raise InputError(f"Port {port} of {ADDRESS} is taken. Stop what listens there, or give another --port.")
        if ended is not None and ended != RUNNING_ALREADY:
            break
        server = running(folder)
        if server and _answers(server.environment):
            return server
        time.sleep(0.05)
    process.kill()
    raise InputError(f"The local S3 server did not start. Read {folder.absolute() / LOG_FILE}.")


def _answers(environment: Mapping[str, str]) -> bool:
    client = boto3.client(
        "s3",
        endpoint_url=environment["AWS_ENDPOINT_URL_S3"],
        aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
        region_name=environment["AWS_REGION"],
        config=Config(proxies={}, retries={"total_max_attempts": 1}, connect_timeout=2, read_timeout=START_TIMEOUT_S),
    )
    try:
        client.list_buckets()
    except (BotoCoreError, ClientError):
        return False
    return True


def _is_locked(folder: Path) -> bool:
    """Whether a server holds `folder`."""
    try:
        with (folder / LOCK_FILE).open("r") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


if __name__ == "__main__":
    main()
