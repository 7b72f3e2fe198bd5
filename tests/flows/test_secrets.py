"""Secrets are planted in the environment and in a Prefect block; a worker's run of the chain fails, the next succeeds;
none keeps a secret.
"""

import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from infra import local_s3
from infra.services import prefect_server
from tests.flows.test_deployments import PROJECT, command, heed_interrupts
from tests.smallest import SMALLEST
from tests.tasks.rewards.service import Reply, lengths, serving

pytestmark = pytest.mark.slow

ACCESS_KEY = "local:AKIAPLANTEDKEYID"
STAGES = {"prepare_data", "sft", "ppo", "remove_value_head", "merge_lora", "evaluate", "export"}
SECRETS = {
    "AWS_ACCESS_KEY_ID": ACCESS_KEY,
    "AWS_SECRET_ACCESS_KEY": "planted0aws0secret0key0f3b1",
    "AWS_SESSION_TOKEN": "planted0aws0session0token0c7d2",
    "JUDGE_AUTH": "Bearer planted0judge0token0a9e4",
    "HF_TOKEN": "hf_planted0hub0token0b8f5",
    "WANDB_API_KEY": "planted0wandb0key0d6a7",
    "PREFECT_API_AUTH_STRING": "admin:planted0prefect0password0e2c8",
}
IN_A_BLOCK = "AWS_SECRET_ACCESS_KEY"
SAVE_BLOCK = f"""
import os
from prefect.blocks.system import Secret
Secret(value=os.environ["{IN_A_BLOCK}"]).save("s3-key")
"""
SERVERS_OWN = {Path("s3/keys.json"), Path("s3/proxy.conf")}  # where the local S3 server keeps the keys that it checks


def forms(secret: str) -> set[bytes]:
    """What would give the secret away: itself, and what a header of basic authentication makes of it."""
    return {secret.rpartition(" ")[2].encode(), base64.b64encode(secret.encode())}


@dataclass
class Seen:
    """Every command line of a process of this machine while it is watched."""

    lines: set[bytes] = field(default_factory=set)
    ended: threading.Event = field(default_factory=threading.Event)

    def watch(self) -> None:
        while not self.ended.wait(0.02):
            for process in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    self.lines.add(process.read_bytes())
                except OSError:
                    continue


@contextmanager
def watched() -> Iterator[Seen]:
    seen = Seen()
    thread = threading.Thread(target=seen.watch)
    thread.start()
    try:
        yield seen
    finally:
        seen.ended.set()
        thread.join()


def content_of(path: Path) -> bytes:
    """A file's bytes, with its extended attributes, in which Swift keeps what it knows of an object."""
    return path.read_bytes() + b"".join(os.getxattr(path, name) for name in os.listxattr(path))


def write_entry(path: Path) -> Path:
    content = yaml.safe_load((PROJECT / "pipelines.yaml").read_text())
    demo = [entry for entry in content["deployments"] if entry["name"] == "demo"]
    path.write_text(yaml.safe_dump(content | {"deployments": demo}))
    return path


@contextmanager
def servers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """An S3 and a Prefect server that know the planted secrets, and the environment in which commands are given."""
    (folder / "s3").mkdir(mode=0o700)
    keys = {"access_key": ACCESS_KEY, "secret_key": SECRETS["AWS_SECRET_ACCESS_KEY"], "salt": "0" * 32}
    (folder / "s3" / "keys.json").write_text(json.dumps(keys))
    (folder / "s3" / "keys.json").chmod(0o600)
    monkeypatch.setenv("PREFECT_HOME", str(folder / "prefect"))
    monkeypatch.setenv("PREFECT_SERVER_API_AUTH_STRING", SECRETS["PREFECT_API_AUTH_STRING"])
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    with local_s3.start(folder / "s3") as s3, prefect_server(folder) as server:
        server.wait_until_ready()
        places = {
            "PREFECT_API_URL": server.api_url,
            local_s3.STORE_VARIABLE: "s3://alignment/test",
            "ALIGNMENT_WORK_DIR": str(folder / "work"),
            "HF_HOME": str(folder / "hub"),
            "OMP_NUM_THREADS": "1",
        }
        yield os.environ | s3.environment | places | SECRETS


@contextmanager
def worker(environment: dict[str, str], log: Path) -> Iterator[None]:
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", "alignment"]
    with log.open("w") as file:
        options = {"cwd": PROJECT, "env": environment, "stdout": file, "stderr": file, "preexec_fn": heed_interrupts}
        with subprocess.Popen(command, **options) as process:
            try:
                yield
            finally:
                process.terminate()


def put_into_block(environment: dict[str, str], folder: Path) -> dict[str, str]:
    """Save one secret as a block that the work pool's template sets; returns the environment without it."""
    subprocess.run([sys.executable, "-c", SAVE_BLOCK], cwd=PROJECT, env=environment, check=True, timeout=120)
    template = json.loads(
        command(environment, "prefect", "work-pool", "get-default-base-job-template", "--type", "process")
    )
    template["variables"]["properties"]["env"]["default"] = {IN_A_BLOCK: "{{ prefect.blocks.secret.s3-key }}"}
    (folder / "template.json").write_text(json.dumps(template))
    update = ("work-pool", "update", "alignment", "--base-job-template", str(folder / "template.json"))
    command(environment, "prefect", *update)
    return {variable: value for variable, value in environment.items() if variable != IN_A_BLOCK}


def run_demo(environment: dict[str, str], url: str, log: Path) -> int:
    """Run it from the worker with the service at `url` as the judge; returns the exit status."""
    judge = {"type": "api", "url": url, "auth_variable": "JUDGE_AUTH", "max_retries": 0}
    options = {**SMALLEST, "ppo.rewards": [judge], "reward_model": None}
    del options["reward_model.max_steps"]
    overrides = f"overrides={json.dumps(options)}"
    words = ["prefect", "deployment", "run", "alignment/demo", "-p", overrides, "--watch"]
    done = subprocess.run(
        [sys.executable, "-m", *words], cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=900
    )
    with log.open("a") as file:
        file.write(done.stdout + done.stderr)
    return done.returncode


def test_no_log_manifest_command_line_artifact_or_database_holds_a_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(request: dict[str, object], number: int) -> Reply:
        said = service.headers[number]["authorization"]
        return lengths(request, number) if number else (401, {"error": f"no right for {said}"}, {})

    with servers(tmp_path, monkeypatch) as environment, serving(answer) as service, watched() as seen:
        command(environment, "infra.deploy", "--file", str(write_entry(tmp_path / "pipelines.yaml")))
        environment = put_into_block(environment, tmp_path)
        with worker(environment, tmp_path / "worker.log"):
            assert run_demo(environment, service.url, tmp_path / "terminal.log") == 1
            assert run_demo(environment, service.url, tmp_path / "terminal.log") == 0
    assert {headers["authorization"] for headers in service.headers} == {SECRETS["JUDGE_AUTH"]}

    files = {path: content_of(path) for path in tmp_path.rglob("*") if path.is_file()}
    assert len(files) > 150
    assert {stage for stage in STAGES if any(f"tasks.{stage}.".encode() in line for line in seen.lines)} == STAGES
    assert_found(files, service.url)
    for variable, secret in SECRETS.items():
        for form in forms(secret):
            holders = {path for path, content in files.items() if form in content}
            assert [path for path in holders if path.relative_to(tmp_path) not in SERVERS_OWN] == [], variable
            assert [line for line in seen.lines if form in line] == [], variable


def assert_found(files: dict[Path, bytes], url: str) -> None:
    """What is no secret is found by the same search where it must be: store, database, the stage's log."""
    holders = {path for path, content in files.items() if url.encode() in content}
    assert any(path.parts.count("s3") and path.suffix == ".data" for path in holders)
    assert any(path.name.startswith("prefect.db") for path in holders)
    refusals = [path for path, content in files.items() if b"no right for (hidden)" in content]
    assert refusals != []
