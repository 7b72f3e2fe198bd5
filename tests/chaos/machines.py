"""Two machines: network namespaces with addresses of their own, which reach the S3 server through a proxy each."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tasks.runner import PROJECT
from tests.chaos.proxy import Proxy, proxied
from tests.chaos.servers import ENDPOINT, port_of
from tests.chaos.transfers import CHUNK_BYTES, contents

NUM_PARTS = 24
SETTLED_S = 1.0
TIMEOUT_S = 120.0
KEY = "1" * 32


@dataclass(frozen=True)
class Machine:
    """A network namespace: its name, its own address, and that of its only neighbour, which is us."""

    name: str
    address: str
    neighbour: str

    def start(
        self, environment: Mapping[str, str], *words: str, output: int | IO[bytes] = subprocess.PIPE
    ) -> "subprocess.Popen[str]":
        """`python -m WORDS` on this machine; what it says and complains of goes to a file, or the former to a pipe."""
        command = ["ip", "netns", "exec", self.name, sys.executable, "-m", *words]
        errors = None if output == subprocess.PIPE else output
        return subprocess.Popen(command, cwd=PROJECT, env=dict(environment), stdout=output, stderr=errors, text=True)

    def pids(self) -> list[int]:
        """Whatever runs there."""
        said = subprocess.run(["ip", "netns", "pids", self.name], check=True, capture_output=True, text=True)
        return [int(pid) for pid in said.stdout.split()]


def why_not() -> str | None:
    """Why there can be no second machine here; None if there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    return None if shutil.which("ip") else "ip is not installed (apt-get install iproute2)"


@contextmanager
def machine(number: int) -> Iterator[Machine]:
    """A machine on a network of its own."""
    name, inner, outer = f"chaos-{os.getpid()}-{number}", f"10.213.{number}.2", f"10.213.{number}.1"
    device = f"chaos{number}"
    _ip("netns", "add", name)
    try:
        _ip("link", "add", device, "type", "veth", "peer", "name", "eth0", "netns", name)
        _ip("addr", "add", f"{outer}/24", "dev", device)
        _ip("link", "set", device, "up")
        _ip("-n", name, "addr", "add", f"{inner}/24", "dev", "eth0")
        _ip("-n", name, "link", "set", "eth0", "up")
        yield Machine(name, inner, outer)
    finally:
        subprocess.run(["ip", "link", "del", device], check=False, capture_output=True)
        _ip("netns", "del", name)


def publish_from_two(variables: Mapping[str, str], folder: Path) -> tuple[dict[str, int], list[str]]:
    """One machine publishes and is killed half-way, the other publishes the same: parts sent by each, violations."""
    source = folder / "source"
    source.mkdir()
    (source / "model.bin").write_bytes(os.urandom(NUM_PARTS * CHUNK_BYTES))
    uri = f"s3://chaos/machines-{os.getpid()}"
    with ExitStack() as stack:
        first, second = (connected(stack, variables, number) for number in (1, 2))
        process = first.move("publish", uri, source)
        while first.parts_sent < NUM_PARTS // 3 and process.poll() is None:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
        time.sleep(SETTLED_S)
        published = second.move("publish", uri, source).communicate(timeout=TIMEOUT_S)[0]
        fetched = first.move("fetch", uri, folder / "cache").communicate(timeout=TIMEOUT_S)[0]
        sent = {"first": first.parts_sent, "second": second.parts_sent}
    violations = [] if published else ["the second machine did not publish"]
    if not 0 < sent["first"] < NUM_PARTS:
        violations.append(f"the first machine was not killed half-way: {sent}")
    if sum(sent.values()) != NUM_PARTS:
        violations.append(f"of {NUM_PARTS} parts {sent} were sent: not only what was missing")
    if not fetched or contents(Path(json.loads(fetched)["place"])) != contents(source):
        violations.append("other bytes were delivered than published")
    return sent, violations


@dataclass(frozen=True)
class Connected:
    """A machine with the proxy through which alone it reaches the S3 server."""

    machine: Machine
    proxy: Proxy
    environment: Mapping[str, str]

    def move(self, action: str, uri: str, folder: Path) -> "subprocess.Popen[str]":
        """Publish or fetch there."""
        words = (action, uri, str(folder), KEY, "--chunk-bytes", str(CHUNK_BYTES))
        return self.machine.start(self.environment, "tests.chaos.mover", *words)

    @property
    def parts_sent(self) -> int:
        """Parts that the server acknowledged to this machine's own address."""
        return self.proxy.parts_sent[self.machine.address]


def connected(stack: ExitStack, variables: Mapping[str, str], number: int) -> Connected:
    """The machine with this number, until the stack closes."""
    one = stack.enter_context(machine(number))
    proxy, port = stack.enter_context(proxied(port_of(variables), address=one.neighbour))
    endpoint = {ENDPOINT: f"http://{one.neighbour}:{port}", "NO_PROXY": one.neighbour}
    return Connected(one, proxy, {**os.environ, **variables, **endpoint})


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)
