"""Ways to run the chain that a kill may hit: the runner alone, the flow, and the flow from a worker.

Each starts the same work again and again over the same store and work folder until it is done.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import yaml

from infra import local_s3
from tasks.runner import PROJECT
from tests.chaos.chain import ENTRY, write_pipelines
from tests.chaos.marks import MARK, Process, below, marked

ACKNOWLEDGED = re.compile(r"is at (\S+://\S+/artifacts/\S+)")
FLOW_RUN = re.compile(r"Beginning flow run '([\w-]+)'")
CANCELLING = {"type": "CANCELLING", "name": "Cancelling"}
ASK_EVERY_S = 1.0
TERMINAL = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


class RunnerAlone:
    """`python -m tests.chaos.chain`: no Prefect."""

    name = "runner alone"
    runner = "runner"
    module = ("tests.chaos.chain",)

    def __init__(self, folder: Path, store: str, num_processes: int, until: str | None = None) -> None:
        folder.mkdir(parents=True)
        self.mark = uuid.uuid4().hex
        self.num_processes = num_processes
        self.log = folder / "log.txt"
        self.process: subprocess.Popen[bytes] | None = None
        self._file = write_pipelines(folder / "pipelines.yaml", num_processes)
        self._until = until
        self.environment = os.environ | {
            MARK: self.mark,
            local_s3.STORE_VARIABLE: store,
            "ALIGNMENT_WORK_DIR": str(folder / "work"),
            "OMP_NUM_THREADS": "1",
            "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
        }

    def start(self) -> None:
        """Run the same command (again)."""
        until = ["--until", self._until] if self._until else []
        self._spawn(*self.module, "--file", str(self._file), *until)

    def _spawn(self, *command: str) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *command], cwd=PROJECT, env=self.environment, stdout=log, stderr=log,
                start_new_session=True, preexec_fn=heed_interrupts,
            )  # fmt: skip

    def status(self) -> int | None:
        """0 when the chain is done, another number when it failed, None while it runs."""
        assert self.process is not None
        return self.process.poll()

    def main_process(self, processes: list[Process]) -> Process | None:
        """The process in which the runner works, if it lives."""
        assert self.process is not None
        return next((one for one in processes if one.pid == self.process.pid), None)

    def supervisor(self, processes: list[Process]) -> Process | None:
        """The supervisor of the stage that runs now."""
        return next((one for one in processes if one.says("tasks.supervisor") and one.says("--log")), None)

    def must_end(self, processes: list[Process], target: str) -> list[Process]:
        """Those that may not be alive a while after a kill of `target`."""
        if target == self.runner:
            return processes
        supervisor = self.supervisor(processes)
        return [supervisor, *below(supervisor, processes)] if supervisor else []

    def acknowledged(self) -> list[str]:
        """The address of every artifact that was reported as published."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return list(dict.fromkeys(ACKNOWLEDGED.findall(text)))

    def tail(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])

    def close(self) -> None:
        """End whatever is left."""
        for process in marked(self.mark):
            os.kill(process.pid, signal.SIGKILL)
        if self.process is not None:
            self.process.wait()


class Flow(RunnerAlone):
    """`python -m infra.run demo`: the flow in the process that was started."""

    name = "flow"
    runner = "flow process"
    module = ("infra.run", ENTRY)

    def cancel(self) -> None:
        """Cancel the newest flow run through Prefect's API, as its UI does."""
        names = FLOW_RUN.findall(self.log.read_text(errors="replace"))
        [run] = ask_prefect("flow_runs/filter", flow_runs={"name": {"any_": names[-1:]}})
        ask_prefect(f"flow_runs/{run['id']}/set_state", state=CANCELLING)

    def start(self) -> None:
        self._spawn(*self.module, "--file", str(self._file), "--output", str(self.log.parent / "summary"))


class FromWorker(RunnerAlone):
    """A deployment that a worker of its own runs; the worker may be killed too."""

    name = "flow from a worker"
    runner = "flow process"

    def __init__(self, folder: Path, store: str, num_processes: int, until: str | None = None) -> None:
        super().__init__(folder, store, num_processes, until)
        content = yaml.safe_load(self._file.read_text())
        pool = f"chaos-{self.mark[:8]}"
        content["deployments"][0]["work_pool"]["name"] = pool
        self._file.write_text(yaml.safe_dump(content, sort_keys=False))
        self._pool = pool
        self._run_ids: list[str] = []
        self._state, self._asked_at = "", 0.0
        unmarked = {name: value for name, value in self.environment.items() if name != MARK}
        deploy = [sys.executable, "-m", "infra.deploy", "--file", str(self._file)]
        subprocess.run(deploy, cwd=PROJECT, env=unmarked, check=True, capture_output=True, timeout=120)

    def start(self) -> None:
        self._keep_worker()
        [deployment] = ask_prefect("deployments/filter", deployments={"name": {"any_": [ENTRY]}})
        self._run_ids.append(ask_prefect(f"deployments/{deployment['id']}/create_flow_run")["id"])
        self._state, self._asked_at = "", 0.0

    def status(self) -> int | None:
        self._keep_worker()
        if time.monotonic() - self._asked_at >= ASK_EVERY_S:
            [run] = ask_prefect("flow_runs/filter", flow_runs={"id": {"any_": self._run_ids[-1:]}})
            self._state = run["state_type"]
            self._asked_at = time.monotonic()
        return None if self._state not in TERMINAL else int(self._state != "COMPLETED")

    def _keep_worker(self) -> None:
        """Start a worker in place of one that has ended, as a machine's service manager does."""
        if self.process is None or self.process.poll() is not None:
            self._spawn("prefect", "worker", "start", "--pool", self._pool)

    def main_process(self, processes: list[Process]) -> Process | None:
        supervisor = self.supervisor(processes)
        parent = supervisor.parent if supervisor else None
        engines = [one for one in processes if one.pid == parent or one.says("prefect.engine")]
        return engines[0] if engines else None

    def worker(self, processes: list[Process]) -> Process | None:
        return super().main_process(processes)

    def must_end(self, processes: list[Process], target: str) -> list[Process]:
        if target == "worker":
            return [one for one in processes if one == self.worker(processes)]
        if target == self.runner:
            worker = self.worker(processes)
            return [one for one in processes if one != worker]
        return super().must_end(processes, target)

    def acknowledged(self) -> list[str]:
        """As the tasks' final states say: the log of a flow from a worker lies with Prefect."""
        runs = ask_prefect("task_runs/filter", flow_runs={"id": {"any_": self._run_ids}}, sort="END_TIME_DESC")
        done = [run["state"]["message"] for run in reversed(runs) if run["state_type"] == "COMPLETED"]
        return list(dict.fromkeys(message for message in done if "/artifacts/" in message))

    def cancel(self) -> None:
        ask_prefect(f"flow_runs/{self._run_ids[-1]}/set_state", state=CANCELLING)


def ask_prefect(path: str, **body: Any) -> Any:
    """What Prefect's REST API answers to a POST."""
    headers = {"Content-Type": "application/json"}
    request = Request(f"{os.environ['PREFECT_API_URL']}/{path}", json.dumps(body).encode(), headers)
    with urlopen(request, timeout=30) as answer:
        return json.load(answer)


def heed_interrupts() -> None:
    """A process whose parent ignores SIGINT, as a shell's background jobs do, would ignore SIGTERM too."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def wait_until_ended(launch: RunnerAlone, limit_s: float) -> int | None:
    """The run's status once it has ended; None if it has not within the limit."""
    deadline = time.monotonic() + limit_s
    while (status := launch.status()) is None and time.monotonic() < deadline:
        time.sleep(0.1)
    return status


LAUNCHES: Mapping[str, type[RunnerAlone]] = {one.name: one for one in (RunnerAlone, Flow, FromWorker)}
