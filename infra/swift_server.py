"""OpenStack Swift as one process on loopback: the four servers that S3 needs, all state under one folder.

    python -m infra.swift_server FOLDER [--port PORT] [--until-eof]

Swift runs as a fleet of daemons in sessions of their own. Here its servers are green threads of one process,
which starts sooner, takes less memory, and cannot leave anything behind.
"""

import argparse
import errno
import fcntl
import json
import logging
import os
import secrets
import socket
import sys
import warnings
from pathlib import Path
from typing import Any

from infra.swift_filters import MARK, marked_only

ADDRESS = "127.0.0.1"
REGION = "us-east-1"
BACKENDS = ("account", "container", "object")
LOCK_FILE, STATE_FILE, KEYS_FILE = "lock", "server.json", "keys.json"
RUNNING_ALREADY, PORT_TAKEN = 3, 4
RING_PART_POWER = 4
DEVICE = "disk"

COMMON = """
[DEFAULT]
swift_dir = {folder}
devices = {folder}/data
mount_check = false
fallocate_reserve = 1%
log_level = WARNING
"""

BACKEND = """
[pipeline:main]
pipeline = {name}-server

[app:{name}-server]
use = egg:swift#{name}
network_chunk_size = 1048576
disk_chunk_size = 1048576
"""

PROXY = """
[pipeline:main]
pipeline = catch_errors gatekeeper healthcheck cache one_creator listing_formats bulk s3api tempauth copy slo dlo
    versioned_writes symlink proxy-server

[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
client_chunk_size = 1048576
object_chunk_size = 1048576

[filter:s3api]
use = egg:swift#s3api
location = us-east-1

[filter:tempauth]
use = egg:swift#tempauth
user_{account}_{user} = {secret} .admin

[filter:cache]
paste.filter_factory = infra.swift_filters:memory_cache

[filter:one_creator]
paste.filter_factory = infra.swift_filters:one_creator
"""
PLAIN_FILTERS = [
    "catch_errors",
    "gatekeeper",
    "healthcheck",
    "listing_formats",
    "bulk",
    "copy",
    "slo",
    "dlo",
    "versioned_writes",
    "symlink",
]


def main() -> None:
    """Serve until SIGTERM, or with --until-eof until the starter, who holds our standard input, is gone."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--port", type=int, default=0, help="0 = the last one if it is free, else any")
    parser.add_argument("--until-eof", action="store_true")
    arguments = parser.parse_args()
    os.umask(0o077)
    folder = arguments.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)  # it may have been there before
    lock = (folder / LOCK_FILE).open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit(RUNNING_ALREADY)
    serve(folder, arguments.port, arguments.until_eof)


def serve(folder: Path, port: int, until_eof: bool) -> None:
    """Run the four servers; their ports are open before the first one is loaded, so that requests wait for it."""
    warnings.simplefilter("ignore")  # eventlet warns of itself
    import eventlet
    from swift.common import utils

    logging.disable()  # and of objects that it need not patch
    utils.monkey_patch()
    logging.disable(logging.NOTSET)
    front = _listen(folder, port)
    sockets = {name: socket.create_server((ADDRESS, 0)) for name in BACKENDS} | {"proxy": front}
    _write_rings(folder, {name: sockets[name].getsockname()[1] for name in BACKENDS})
    _write_configs(folder, load_keys(folder))
    utils.set_swift_dir(str(folder))
    utils.validate_configuration()
    utils.FALLOCATE_RESERVE, utils.FALLOCATE_IS_PERCENT = 1, True
    utils.get_logger({"log_level": "WARNING"}, log_to_console=True)
    inside = _mark_requests_between_servers()
    for name, listener in sockets.items():
        eventlet.spawn(_serve_one, folder / f"{name}.conf", listener, inside if name in BACKENDS else None)
    _write_private(folder / STATE_FILE, json.dumps({"pid": os.getpid(), "port": front.getsockname()[1]}))
    _wait(until_eof)


def _mark_requests_between_servers() -> str:
    """Make every request of ours to a backend carry a mark, drawn at this start; returns it."""
    from swift.common.bufferedhttp import BufferedHTTPConnection

    mark, put_request = secrets.token_hex(16), BufferedHTTPConnection.putrequest

    def put_marked_request(self: Any, *args: Any, **kwargs: Any) -> None:
        put_request(self, *args, **kwargs)
        self.putheader(MARK, mark)

    BufferedHTTPConnection.putrequest = put_marked_request
    return mark


def _serve_one(config: Path, listener: socket.socket, mark: str | None) -> None:
    from eventlet import wsgi
    from swift.common.http_protocol import SwiftHttpProtocol
    from swift.common.utils import NullLogger
    from swift.common.wsgi import loadapp

    app = loadapp(str(config), allow_modify_pipeline=False)
    wsgi.server(
        listener,
        app if mark is None else marked_only(app, mark),
        NullLogger(),
        protocol=SwiftHttpProtocol,
        socket_timeout=60,
        capitalize_response_headers=False,  # S3 clients look for "ETag", not "Etag"
    )


def load_keys(folder: Path) -> dict[str, str]:
    """The access key, its secret and Swift's hash salt; drawn at random the first time, then kept."""
    path = folder / KEYS_FILE
    if not path.exists():
        keys = {"access_key": "local:pipeline", "secret_key": secrets.token_hex(20), "salt": secrets.token_hex(16)}
        _write_private(path, json.dumps(keys))
    return json.loads(path.read_text())


def _listen(folder: Path, port: int) -> socket.socket:
    """The socket clients talk to: at `port`, or without one where we listened last time if that is free."""
    state = folder / STATE_FILE
    wanted = [port] if port else [json.loads(state.read_text())["port"], 0] if state.exists() else [0]
    state.unlink(missing_ok=True)
    for candidate in wanted:
        try:
            return socket.create_server((ADDRESS, candidate))
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise
    sys.exit(PORT_TAKEN)


def _write_rings(folder: Path, ports: dict[str, int]) -> None:
    """The rings say that everything lies on this one device; only the ports in them change between starts."""
    from swift.common.ring import RingBuilder

    for name, port in ports.items():
        (folder / "data" / DEVICE).mkdir(parents=True, exist_ok=True)
        builder = RingBuilder(RING_PART_POWER, replicas=1, min_part_hours=0)
        builder.add_dev({"region": 1, "zone": 1, "weight": 1.0, "ip": ADDRESS, "port": port, "device": DEVICE})
        builder.rebalance()
        ring = folder / f"{name}.ring.gz"
        builder.get_ring().save(str(ring))
        ring.chmod(0o600)


def _write_configs(folder: Path, keys: dict[str, str]) -> None:
    common = COMMON.format(folder=folder)
    account, user = keys["access_key"].split(":")
    proxy = PROXY.format(account=account, user=user, secret=keys["secret_key"])
    filters = "".join(f"\n[filter:{name}]\nuse = egg:swift#{name}\n" for name in PLAIN_FILTERS)
    _write_private(folder / "swift.conf", f"[swift-hash]\nswift_hash_path_suffix = {keys['salt']}\n")
    _write_private(folder / "proxy.conf", common + proxy + filters)
    for name in BACKENDS:
        _write_private(folder / f"{name}.conf", common + BACKEND.format(name=name))


def _write_private(path: Path, text: str) -> None:
    """Write a file that only we can read; it appears whole or not at all."""
    temporary = path.with_suffix(".new")
    temporary.write_text(text)
    temporary.chmod(0o600)
    temporary.replace(path)


def _wait(until_eof: bool) -> None:
    """Let the servers run, for ever or until standard input ends."""
    from eventlet.event import Event
    from eventlet.hubs import trampoline

    if until_eof:
        trampoline(sys.stdin.fileno(), read=True)
    else:
        Event().wait()


if __name__ == "__main__":
    main()
