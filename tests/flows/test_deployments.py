"""What the README says of deploying, done for real: a server, a worker, an S3 server, and `alignment/demo`."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
import yaml

from infra import local_s3
from infra.entries import read_entries
from infra.services import prefect_server
from tasks.artifacts import store_at
from tests.smallest import SMALLEST

pytestmark = pytest.mark.slow

PROJECT = Path(__file__).resolve().parent.parent.parent
STAGES = [
    "prepare_data", "sft", "reward_model", "certify", "ppo", "remove_value_head", "merge_lora", "evaluate", "export",
]  # fmt: skip
RELEASE = ["certificate", "gate", "champion", "report"]
BUSY_S = 30.0
SABOTAGED = {
    "ppo.rewards": [{"type": "function", "function": "tests.flows.sabotage:fewer_letters"}],
    "ppo.guard": None,
    "ppo.total_episodes": 240,
    "ppo.learning_rate": 0.02,
    "evaluate.metrics": {"letters": "tests.flows.sabotage:letters"},
    "evaluate.num_prompts": 12,
    "gate.metric_drop": 0.2,
}
FORMS = {"export.adapter": {"base": "org/sft"}, "export.modelfile": True}


class Api:
    """Prefect's REST API, as anybody would ask it."""

    def __init__(self, url: str) -> None:
        self.url = url

    def post(self, path: str, **body: Any) -> Any:
        """The answer; a server that is busy (503: its database is locked) is asked again, as Prefect's client does."""
        request = Request(f"{self.url}/{path}", json.dumps(body).encode(), {"Content-Type": "application/json"})
        deadline = time.monotonic() + BUSY_S
        while True:
            try:
                with urlopen(request, timeout=30) as answer:
                    return json.load(answer)
            except HTTPError as error:
                if error.code != HTTPStatus.SERVICE_UNAVAILABLE or time.monotonic() > deadline:
                    raise
                time.sleep(1)

    def deployments(self) -> dict[str, dict[str, Any]]:
        return {one["name"]: one for one in self.post("deployments/filter")}


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of a shell in which the README's commands are given: everything of its own, nothing shared."""
    folder = tmp_path_factory.mktemp("deployments")
    before = dict(os.environ)
    os.environ["PREFECT_HOME"] = str(folder / "prefect")
    os.environ.pop("PREFECT_API_URL", None)
    try:
        with local_s3.start(folder / "s3") as s3, prefect_server(folder) as server:
            server.wait_until_ready()
            yield (
                os.environ
                | s3.environment
                | {
                    "PREFECT_API_URL": server.api_url,
                    local_s3.STORE_VARIABLE: "s3://alignment/test",
                    "ALIGNMENT_WORK_DIR": str(folder / "work"),
                    "OMP_NUM_THREADS": "1",
                }
            )
    finally:
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture(scope="module")
def api(environment: dict[str, str]) -> Api:
    return Api(environment["PREFECT_API_URL"])


@pytest.fixture(scope="module")
def worker(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    log = (tmp_path_factory.mktemp("worker") / "log.txt").open("w")
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", "alignment"]
    options = {"cwd": PROJECT, "env": environment, "stdout": log, "stderr": log, "preexec_fn": heed_interrupts}
    with subprocess.Popen(command, **options) as process:
        yield
        process.terminate()


def heed_interrupts() -> None:
    """A worker whose parent ignores SIGINT, as a shell's background jobs do, would ignore SIGTERM too."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def command(environment: dict[str, str], *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *words], cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def wait_for(condition: Callable[[], Any], timeout_s: float) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.5)
    return value


def test_deploying_brings_every_entry_with_its_schedule(environment: dict[str, str], api: Api) -> None:
    said = command(environment, "infra.deploy")
    assert "prefect worker start --pool alignment" in said
    deployed = api.deployments()
    assert sorted(deployed) == ["demo", "nightly", "ppo", "rlvr"]
    [schedule] = deployed["nightly"]["schedules"]
    assert (schedule["schedule"]["cron"], schedule["schedule"]["timezone"]) == ("0 2 * * *", "Europe/Berlin")
    assert deployed["nightly"]["concurrency_options"]["collision_strategy"] == "CANCEL_NEW"
    [limit] = [one for one in api.post("concurrency_limits/filter") if one["tag"] == "gpu"]
    assert limit["concurrency_limit"] == 1


def test_the_demo_runs_from_a_worker_and_shows_its_artifacts(
    environment: dict[str, str], api: Api, worker: None
) -> None:
    overrides = f"overrides={json.dumps(SMALLEST | FORMS)}"
    command(environment, "prefect", "deployment", "run", "alignment/demo", "-p", overrides, "--watch")
    [run] = completed_runs(api, api.deployments()["demo"]["id"])
    tasks = wait_for(lambda: finished_tasks(api, run["id"]), timeout_s=20)
    assert sorted(tasks) == sorted(STAGES + RELEASE)
    artifacts = api.post("artifacts/filter", limit=200)
    keys = {artifact["key"] for artifact in artifacts}
    assert keys >= {
        "sft-progress",
        "sft-figures",
        "sft-report",
        "certify-report",
        "certificate-thresholds",
        "ppo-report",
        "evaluate-report",
        "gate-report",
        "alignment-summary",
        "alignment-report",
    }
    [report] = [one for one in artifacts if one["key"] == "ppo-report"]
    assert "data:image/png;base64," in report["data"]
    [address] = [one["description"] for one in artifacts if one["key"] == "alignment-report"]
    assert address == f"`{environment[local_s3.STORE_VARIABLE]}/runs/demo/{run['id']}.html`"


def test_the_export_holds_its_forms_and_how_to_make_it_again(
    environment: dict[str, str], worker: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    store = store_at(environment[local_s3.STORE_VARIABLE])
    files = {"/".join(file.name.split("/")[4:]): file.name for file in store.files("artifacts/export/")}
    adapter = json.loads(store.read(files["adapter/adapter_config.json"]) or b"")
    assert adapter["base_model_name_or_path"] == "org/sft"
    assert (store.read(files["Modelfile"]) or b"").startswith(b"FROM .\n")
    (tmp_path / "reproduce.yaml").write_bytes(store.read(files["reproduce.yaml"]) or b"")
    again = read_entries(tmp_path / "reproduce.yaml")["reproduce"].parameters.pipeline
    assert again.overridden({}).export.modelfile
    assert (again.ppo.total_episodes, again.sft.max_steps) == (
        SMALLEST["ppo.total_episodes"],
        SMALLEST["sft.max_steps"],
    )


def finished_tasks(api: Api, flow_run_id: str) -> list[str] | None:
    runs = api.post("task_runs/filter", flow_runs={"id": {"any_": [flow_run_id]}})
    names = [run["name"].rsplit("-", 1)[0] for run in runs if run["state_type"] == "COMPLETED"]
    return names if len(names) == len(STAGES + RELEASE) else None


def test_a_model_that_a_sabotaged_reward_spoilt_is_not_exported_and_the_champion_stays(
    environment: dict[str, str], api: Api, worker: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    store = store_at(environment[local_s3.STORE_VARIABLE])
    champion = store.read("champions/demo.json")
    exports = [file.name for file in store.files("artifacts/export/")]
    overrides = SMALLEST | SABOTAGED
    words = ["prefect", "deployment", "run", "alignment/demo", "-p", f"overrides={json.dumps(overrides)}", "--watch"]
    done = subprocess.run(
        [sys.executable, "-m", *words], cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 1
    assert "FailedByGate" in done.stdout + done.stderr
    [run] = [run for run in all_runs(api, api.deployments()["demo"]["id"]) if run["state_type"] == "FAILED"]
    assert run["state_name"] == "FailedByGate"
    assert "of 3 rules of the gate failed; nothing was exported" in run["state"]["message"]
    assert re.search(r"failed: letters_difference is -\S+, has to be ≥ -0.2", run["state"]["message"])
    assert champion is not None
    assert json.loads(champion)["uri"] in run["state"]["message"]
    assert store.read("champions/demo.json") == champion
    assert [file.name for file in store.files("artifacts/export/")] == exports
    page = (store.read(f"runs/demo/{run['id']}.html") or b"").decode()
    assert "<h1>Refused by the gate</h1>" in page
    assert "letters_difference" in page


def test_a_reward_model_that_its_certificate_refuses_is_not_followed(
    environment: dict[str, str], api: Api, worker: None
) -> None:
    overrides = SMALLEST | {"certify.accept": [], "certify.pair_accuracy_low": 1.0}
    words = ["prefect", "deployment", "run", "alignment/demo", "-p", f"overrides={json.dumps(overrides)}", "--watch"]
    done = subprocess.run(
        [sys.executable, "-m", *words], cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 1
    runs = all_runs(api, api.deployments()["demo"]["id"])
    [run] = [run for run in runs if run["state_name"] == "FailedByCertificate"]
    assert re.search(r"failed: pair_accuracy_low is \S+, has to be ≥ 1\n", run["state"]["message"])
    assert "set certify.accept: [" in run["state"]["message"]
    ran = {task["name"].rsplit("-", 1)[0] for task in ended_tasks(api, run["id"])}
    assert ran == {"prepare_data", "sft", "reward_model", "certify", "certificate", "report"}


def test_a_misspelt_option_is_refused_by_the_server(environment: dict[str, str], api: Api) -> None:
    demo = api.deployments()["demo"]
    parameters = json.loads(json.dumps(demo["parameters"]))
    parameters["pipeline"]["ppo"]["kl_koef"] = 0.1
    with pytest.raises(OSError, match="HTTP Error 409"):
        api.post(f"deployments/{demo['id']}/create_flow_run", parameters=parameters)


def test_a_schedule_fires_and_an_entry_that_leaves_the_file_is_removed(
    environment: dict[str, str], api: Api, worker: None, tmp_path: Path
) -> None:
    content = yaml.safe_load((PROJECT / "pipelines.yaml").read_text())
    [demo] = [entry for entry in content["deployments"] if entry["name"] == "demo"]
    often = demo | {
        "name": "often",
        "schedules": [{"slug": "often", "interval": 5.0}],
        "concurrency_limit": {"limit": 1, "collision_strategy": "CANCEL_NEW"},
        "parameters": demo["parameters"] | {"overrides": SMALLEST | FORMS},
    }
    file = tmp_path / "pipelines.yaml"
    file.write_text(yaml.safe_dump(content | {"deployments": [demo, often]}))
    command(environment, "infra.deploy", "--file", str(file))
    assert sorted(api.deployments()) == ["demo", "often"]
    [run] = wait_for(lambda: completed_runs(api, api.deployments()["often"]["id"]), timeout_s=90)[:1]
    assert run["auto_scheduled"]
    stages = [task for task in ended_tasks(api, run["id"]) if task["name"].rsplit("-", 1)[0] in STAGES]
    assert {task["state_name"] for task in stages} <= {"AlreadyDone"}


def completed_runs(api: Api, deployment_id: str) -> list[dict[str, Any]]:
    return [run for run in all_runs(api, deployment_id) if run["state_type"] == "COMPLETED"]


def all_runs(api: Api, deployment_id: str) -> list[dict[str, Any]]:
    return list(api.post("flow_runs/filter", deployments={"id": {"any_": [deployment_id]}}))


def ended_tasks(api: Api, flow_run_id: str) -> list[dict[str, Any]]:
    """The task runs of a flow run that has ended, once the server has their last states too: they come after it."""

    def found() -> list[dict[str, Any]]:
        runs = list(api.post("task_runs/filter", flow_runs={"id": {"any_": [flow_run_id]}}))
        return runs if all(run["state_type"] not in ("PENDING", "RUNNING") for run in runs) else []

    return list(wait_for(found, timeout_s=30))
