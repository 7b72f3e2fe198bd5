"""The local S3 server as a real process."""

import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import boto3
import psutil
import pytest
from botocore.client import Config
from botocore.exceptions import ClientError

from infra import local_s3
from infra.swift_filters import MemoryCache
from infra.swift_server import load_keys
from tasks.errors import InputError

ROOT = Path(__file__).parents[2]
KILLED = """
import os, signal, sys
from pathlib import Path
from infra import local_s3
with local_s3.start(Path(sys.argv[1])) as server:
    print(server.pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def client(server: local_s3.LocalS3, secret: str | None = None) -> Any:
    environment = server.environment
    return boto3.client(
        "s3",
        endpoint_url=environment["AWS_ENDPOINT_URL_S3"],
        aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=secret or environment["AWS_SECRET_ACCESS_KEY"],
        region_name=environment["AWS_REGION"],
        config=Config(retries={"total_max_attempts": 1}),
    )


def ends(pid: int) -> bool:
    deadline = time.monotonic() + 10
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "infra.local_s3", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=90
    )


@pytest.mark.slow
def test_data_keys_and_port_are_kept_over_a_restart(tmp_path: Path) -> None:
    with local_s3.start(tmp_path) as first:
        before = first.environment
        client(first).create_bucket(Bucket="bucket")
        client(first).put_object(Bucket="bucket", Key="kept", Body=b"data")
    assert local_s3.running(tmp_path) is None
    with local_s3.start(tmp_path) as second:
        assert second.environment == before
        assert client(second).get_object(Bucket="bucket", Key="kept")["Body"].read() == b"data"


@pytest.mark.slow
def test_it_listens_on_loopback_only_and_keeps_its_secrets_to_itself(tmp_path: Path) -> None:
    folder = tmp_path / "s3"
    folder.mkdir(mode=0o755)
    with local_s3.start(folder) as server:
        listening = [c for c in psutil.Process(server.pid).net_connections() if c.status == psutil.CONN_LISTEN]
        assert len(listening) == 4
        assert {connection.laddr.ip for connection in listening} == {"127.0.0.1"}
        assert server.port in {connection.laddr.port for connection in listening}
        client(server).create_bucket(Bucket="bucket")
        client(server).put_object(Bucket="bucket", Key="key", Body=b"data")
        secret = server.environment["AWS_SECRET_ACCESS_KEY"]
        holders = [path.name for path in folder.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]
        assert sorted(holders) == ["keys.json", "proxy.conf"]
        everything = [folder, *folder.rglob("*")]
        assert len(everything) > 20
        assert [path for path in everything if path.stat().st_mode & 0o077] == []
        for port in {connection.laddr.port for connection in listening} - {server.port}:  # of Swift's backends
            with pytest.raises(HTTPError, match="Error 403"):
                urlopen(f"http://127.0.0.1:{port}/disk/0/AUTH_local", timeout=10)
        with pytest.raises(ClientError, match="SignatureDoesNotMatch"):
            client(server, secret="a guess").list_buckets()
        for path in ("bucket/key", "v1/AUTH_local/bucket/key"):  # S3's and Swift's own, without a signature
            with pytest.raises(HTTPError, match=r"Error 4\d\d"):
                urlopen(f"{server.endpoint}/{path}", timeout=10)


def test_every_folder_gets_keys_of_its_own_at_the_first_start_and_keeps_them(tmp_path: Path) -> None:
    first, second = load_keys(tmp_path), load_keys(tmp_path)
    (tmp_path / "other").mkdir()
    other = load_keys(tmp_path / "other")
    assert first == second
    assert len({first["secret_key"], first["salt"], other["secret_key"], other["salt"]}) == 4
    assert min(len(first["secret_key"]), len(first["salt"])) >= 32
    assert (tmp_path / "keys.json").stat().st_mode & 0o777 == 0o600


@pytest.mark.slow
def test_of_many_conditional_writers_one_wins(tmp_path: Path) -> None:
    with local_s3.start(tmp_path) as server:
        s3 = client(server)
        s3.create_bucket(Bucket="bucket")

        def write(writer: int, key: str) -> int:
            try:
                s3.put_object(Bucket="bucket", Key=key, Body=str(writer), IfNoneMatch="*")
            except s3.exceptions.ClientError as error:
                return int(error.response["ResponseMetadata"]["HTTPStatusCode"])
            return 200

        with ThreadPoolExecutor(8) as pool:
            for key in ("one", "two", "three"):
                answers = list(pool.map(write, range(8), [key] * 8))
                assert sorted(answers) == [200] + [412] * 7
                assert s3.get_object(Bucket="bucket", Key=key)["Body"].read().decode() == str(answers.index(200))


@pytest.mark.slow
def test_it_ends_when_its_starter_is_killed(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL
    assert ends(int(done.stdout))


@pytest.mark.slow
def test_the_commands_start_find_and_stop_one_server(tmp_path: Path) -> None:
    folder = ("--folder", str(tmp_path / "s3"))
    assert command("status", *folder).returncode == 1
    assert "started at http://127.0.0.1:" in command("start", *folder).stdout
    server = local_s3.running(tmp_path / "s3")
    assert server is not None
    try:
        assert "running already" in command("start", *folder).stdout
        with local_s3.start(tmp_path / "s3") as used:
            assert used == server
        lines = command("env", *folder).stdout.splitlines()
        assert f"export AWS_ENDPOINT_URL_S3={server.endpoint}" in lines
        assert client(server).list_buckets()["Buckets"] == []
    finally:
        assert command("stop", *folder).stdout == "stopped\n"
    assert ends(server.pid)
    assert "no server runs" in command("stop", *folder).stdout


@pytest.mark.slow
def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(InputError, match=f"Port {port} of 127.0.0.1 is taken"):
            local_s3.start_detached(tmp_path, port)


def test_without_swift_the_message_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_s3, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"not installed. Run: pip install"):
        local_s3.start_detached(tmp_path)


def test_cached_values_expire_and_are_forgotten() -> None:
    cache = MemoryCache()
    cache.set("kept", {"a": [1]}, time=60)
    cache.set("expired", 1, time=0)
    assert (cache.get("kept"), cache.get("expired"), cache.get("never")) == ({"a": [1]}, None, None)
    cache.delete("kept")
    assert cache.get("kept") is None
