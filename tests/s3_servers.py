"""S3 servers to test against: each is started in an empty folder and gives the environment that its clients need."""

import ctypes
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.error import URLError

import pytest

from infra import local_s3

CEPH_BINARIES = ("ceph", "ceph-mon", "ceph-osd", "monmaptool", "radosgw", "radosgw-admin")
PR_SET_PDEATHSIG = 1
SECOND_USERS_NAME = "second"
SECOND_USER = {"AWS_ACCESS_KEY_ID": "second-access", "AWS_SECRET_ACCESS_KEY": "second-secret"}
READY_TIMEOUT_S = 60.0

CEPH_CONFIG = """
[global]
fsid = {fsid}
mon_host = v2:127.0.0.1:{mon_port}/0
mon_initial_members = a
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
ms_mon_client_mode = crc
ms_mon_cluster_mode = crc
ms_mon_service_mode = crc
ms_bind_msgr1 = false
public_addr = 127.0.0.1
admin_socket =
pid_file =
log_file = {folder}/$name.log
mon_data = {folder}/mon
osd_data = {folder}/osd
rgw_data = {folder}/rgw
run_dir = {folder}
paxos_propose_interval = 0.05
paxos_min_wait = 0.01
objecter_tick_interval = 0.5
mon_data_avail_crit = 1
mon_allow_pool_size_one = true
osd_crush_chooseleaf_type = 0
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 1
osd_pool_default_pgp_num = 1
osd_pool_default_pg_autoscale_mode = off
osd_objectstore = memstore
memstore_device_bytes = 8589934592
rgw_crypt_s3_kms_backend = testing
rgw_crypt_require_ssl = false
rgw_crypt_s3_kms_encryption_keys = testkey-1=YmluCmJvb3N0CmJvb3N0LWJ1aWxkCmNlcGguY29uZgo=
rgw_gc_obj_min_wait = 1
rgw_gc_processor_period = 2
rgw_gc_processor_max_time = 2
"""


@contextmanager
def swift(folder: Path) -> Iterator[dict[str, str]]:
    """OpenStack Swift, as the project itself runs it."""
    pytest.importorskip("swift", reason="OpenStack Swift is not installed (pip install '.[s3]')")
    with local_s3.start(folder) as server:
        yield server.environment


@contextmanager
def ceph(folder: Path) -> Iterator[dict[str, str]]:
    """Ceph's RADOS gateway over one monitor and one store in memory."""
    if missing := [name for name in CEPH_BINARIES if shutil.which(name) is None]:
        pytest.skip(f"Ceph is not installed: {', '.join(missing)} missing (apt-get install radosgw ceph-mon ceph-osd)")
    fsid, osd, mon_port, port = str(uuid.uuid4()), str(uuid.uuid4()), _free_port(), _free_port()
    config = folder / "ceph.conf"
    config.write_text(CEPH_CONFIG.format(fsid=fsid, mon_port=mon_port, folder=folder))
    for name in ("mon", "osd", "rgw"):
        (folder / name).mkdir()

    def run(program: str, *arguments: str) -> None:
        subprocess.run([program, "-c", str(config), *arguments], check=True, capture_output=True, timeout=60)

    monmap = str(folder / "monmap")
    address = f"[v2:127.0.0.1:{mon_port}/0]"
    subprocess.run(["monmaptool", "--create", "--fsid", fsid, "--addv", "a", address, monmap], check=True)
    with ExitStack() as daemons:
        run("ceph-mon", "-i", "a", "--mkfs", "--monmap", monmap)
        daemons.enter_context(_daemon(folder, "ceph-mon", "-c", str(config), "-i", "a", "-f"))
        run("ceph", "--connect-timeout", "30", "osd", "new", osd)
        run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd)
        daemons.enter_context(_daemon(folder, "ceph-osd", "-c", str(config), "-i", "0", "-f"))
        keys = {"AWS_ACCESS_KEY_ID": "access", "AWS_SECRET_ACCESS_KEY": "secret"}
        for name, account in (("test", keys), (SECOND_USERS_NAME, SECOND_USER)):
            words = dict(zip(("--access-key", "--secret"), account.values(), strict=True))
            given = [f"{option}={word}" for option, word in words.items()]
            run("radosgw-admin", "user", "create", f"--uid={name}", f"--display-name={name}", *given)
        endpoint = f"http://127.0.0.1:{port}"
        frontend = f"--rgw-frontends=beast endpoint=127.0.0.1:{port}"
        daemons.enter_context(_daemon(folder, "radosgw", "-c", str(config), "-n", "client.rgw", "-f", frontend))
        _wait_for(endpoint)
        yield {"AWS_ENDPOINT_URL_S3": endpoint, "AWS_REGION": "us-east-1", **keys}


@contextmanager
def _daemon(folder: Path, *command: str) -> Iterator[None]:
    """The command as a process that ends with us, however we end."""
    libc = ctypes.CDLL(None)
    with (folder / f"{command[0]}.out").open("wb") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, preexec_fn=lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        )
    try:
        yield
    finally:
        process.kill()
        process.wait()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _wait_for(endpoint: str) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(endpoint, timeout=5).close()
            return
        except (URLError, ConnectionError):
            time.sleep(0.1)
    pytest.fail(f"Ceph did not answer at {endpoint}")
