"""A run that a server, a worker and a flow's process are taken from: a real server, a real worker, a stub stage."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from prefect import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.settings import PREFECT_API_URL, temporary_settings

from infra.services import free_port, prefect_server
from tests.flows.test_deployments import PROJECT, Api, command, ended_tasks, heed_interrupts, wait_for

pytestmark = pytest.mark.slow

LAST_PROCESS_S = 10.0
AWAY_S = 20.0
TERMINAL = ("COMPLETED", "FAILED", "CANCELLED", "CRASHED")


class Site:
    """A Prefect server with a database of its own, which can be stopped and started again, and a worker."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port(0)
        self.api = Api(f"http://127.0.0.1:{self.port}/api")
        self.environment = os.environ | {
            "PREFECT_API_URL": self.api.url,
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "STUB_FOLDER": str(folder),
        }
        self.deployment = ""
        self._server = contextlib.ExitStack()
        self._worker: subprocess.Popen[bytes] | None = None

    def start_server(self) -> None:
        self._server.enter_context(prefect_server(self.folder, self.port)).wait_until_ready()

    def stop_server(self) -> None:
        self._server.close()

    def worker(self) -> "subprocess.Popen[bytes]":
        """The worker; a new one if the last was ended."""
        if self._worker is None or self._worker.poll() is not None:
            words = [sys.executable, "-m", "prefect", "worker", "start", "--pool", "stub"]
            with (self.folder / "worker.txt").open("a") as log:
                options: dict[str, Any] = {"stdout": log, "stderr": log, "preexec_fn": heed_interrupts}
                self._worker = subprocess.Popen(words, cwd=PROJECT, env=self.environment, **options)
        return self._worker

    def deploy(self) -> None:
        with temporary_settings({PREFECT_API_URL: self.api.url}), get_client(sync_client=True) as client:
            client.create_work_pool(WorkPoolCreate(name="stub", type="process"))
            self.deployment = str(
                client.create_deployment(
                    flow_id=client.create_flow_from_name("stub"),
                    name="stub",
                    entrypoint="tests/flows/stub_flow.py:chain",
                    pull_steps=[{"prefect.deployments.steps.set_working_directory": {"directory": str(PROJECT)}}],
                    work_pool_name="stub",
                    job_variables={"stream_output": False},
                )
            )

    def start_run(self, in_haste: bool = False, **config: Any) -> str:
        """Its id."""
        self.worker()
        parameters = {"config": config, "in_haste": in_haste}
        return str(self.api.post(f"deployments/{self.deployment}/create_flow_run", parameters=parameters)["id"])

    def start_stage(self, in_haste: bool = False, **config: Any) -> str:
        """The run of a stage whose program has come to its work."""
        before = self._at_work()
        run = self.start_run(in_haste, **config)
        wait_for(lambda: self._at_work() - before, timeout_s=60)
        return run

    def _at_work(self) -> set[Path]:
        return set(self.folder.glob("work/stub/*/output/metrics.jsonl"))

    def wait_until(self, run: str, state: str, timeout_s: float = 90) -> None:
        """Return when the run is in the state; fail at once if it ends in another."""

        def has_come() -> bool:
            now = self.state_of(run)
            assert now == state or now not in TERMINAL, f"the run is {now}, and was to be {state}"
            return now == state

        wait_for(has_come, timeout_s)

    def state_of(self, run: str) -> str:
        [found] = self.api.post("flow_runs/filter", flow_runs={"id": {"any_": [run]}})
        return str(found["state_type"])

    def cancel(self, run: str) -> None:
        self.api.post(f"flow_runs/{run}/set_state", state={"type": "CANCELLING"}, force=False)

    def stage_processes(self) -> list[psutil.Process]:
        """Whatever was started for a stage, told by its environment: the supervisor and what is below it."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get("ALIGNMENT_STAGE_OUTPUT", "").startswith(f"{self.folder}/work/"):
                    found.append(process)
        return found

    def engine(self) -> psutil.Process:
        """The flow's process: the parent of the stage's supervisor."""
        [supervisor] = [one for one in self.stage_processes() if "tasks.supervisor" in one.cmdline()]
        parent = supervisor.parent()
        assert parent is not None
        return parent

    def close(self) -> None:
        if self._worker is not None:
            self._worker.kill()
            self._worker.wait()
        self.stop_server()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("interruptions")
    before = dict(os.environ)
    os.environ["PREFECT_HOME"] = str(folder / "prefect")
    os.environ.pop("PREFECT_API_URL", None)
    site = Site(folder)
    try:
        site.start_server()
        site.deploy()
        yield site
    finally:
        site.close()
        os.environ.clear()
        os.environ.update(before)


def seconds_until(condition: Callable[[], bool]) -> float:
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < 60, "did not happen in time"
        time.sleep(0.05)
    return time.monotonic() - started


def assert_no_process_is_left_in_time(site: Site) -> None:
    assert seconds_until(lambda: not site.stage_processes()) <= LAST_PROCESS_S


def test_cancelling_in_the_ui_leaves_no_process_after_ten_seconds(site: Site) -> None:
    run = site.start_stage(behaviour="be stubborn")
    wait_for(lambda: len(site.stage_processes()) == 3, timeout_s=10)  # one is in a session of its own
    site.cancel(run)
    assert_no_process_is_left_in_time(site)
    site.wait_until(run, "CANCELLED")


def test_a_stage_that_takes_too_long_is_ended_and_shows_the_address_of_its_log(site: Site) -> None:
    run = site.start_stage(behaviour="wait", text="too long", in_haste=True)
    engine = site.engine()
    time.sleep(3)  # the timeout of the task `hasty`
    assert_no_process_is_left_in_time(site)
    shown = wait_for(lambda: artifacts(site, run, "stub-log"), timeout_s=20)
    assert f"The whole log: `file://{site.folder}/store/logs/stub/" in shown[0]["data"]
    engine.kill()  # it would try again


def artifacts(site: Site, run: str, key: str) -> list[dict[str, Any]]:
    found = site.api.post("artifacts/filter", limit=200)
    return [one for one in found if one["key"] == key and one["flow_run_id"] == run]


def test_the_stage_ends_with_the_flows_process_and_a_retry_goes_on_from_its_checkpoint(site: Site) -> None:
    run = site.start_run(behaviour="train", text="retried")
    wait_for(lambda: list(site.folder.glob("store/checkpoints/stub/*/step-4/manifest.json")), timeout_s=60)
    site.engine().kill()
    assert_no_process_is_left_in_time(site)
    site.wait_until(run, "CRASHED")
    command(site.environment, "prefect", "flow-run", "retry", run)
    wait_for(lambda: site.state_of(run) == "COMPLETED", timeout_s=90)
    assert started_at(site, "retried") == "4"
    again = site.start_run(behaviour="train", text="retried")
    site.wait_until(again, "COMPLETED")
    assert [task["state_name"] for task in ended_tasks(site.api, again)] == ["AlreadyDone"]


def started_at(site: Site, text: str) -> str:
    """From which step on the stage that wrote `text` trained."""
    [folder] = [path.parent for path in site.folder.glob("store/artifacts/stub/*/*/text") if path.read_text() == text]
    return (folder / "started.json").read_text()


def test_a_stage_goes_on_while_the_server_is_away_and_the_run_completes(site: Site) -> None:
    run = site.start_stage(text="lonely", seconds=AWAY_S - 5)
    site.stop_server()
    time.sleep(AWAY_S)
    assert not site.stage_processes()  # it came to its end meanwhile
    site.start_server()
    site.wait_until(run, "COMPLETED", timeout_s=120)
    assert [task["state_name"] for task in ended_tasks(site.api, run)] == ["Completed"]


def test_after_the_sudden_death_of_the_worker_the_run_goes_on_and_can_be_cancelled(site: Site) -> None:
    run = site.start_stage(behaviour="wait", text="orphaned")
    site.worker().kill()
    time.sleep(3)
    assert site.stage_processes()
    site.cancel(run)
    assert_no_process_is_left_in_time(site)


def test_a_worker_that_is_told_to_end_takes_its_stages_with_it(site: Site) -> None:
    site.start_stage(behaviour="wait", text="with its worker")
    site.worker().terminate()
    assert_no_process_is_left_in_time(site)
