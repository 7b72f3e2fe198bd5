"""Ways to run the chain that a kill may hit: the runner alone, the flow, and the flow from a worker.

Each starts the same work again and again over the same store and work folder until it is done.
"""

import ctypes
import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import yaml

from infra import local_s3
from tasks.runner import PROJECT
from tests.chaos.chain import ENTRY, write_pipelines
from tests.chaos.marks import MARK, Process, below, marked

ADDRESS = re.compile(r"\S+://\S+/artifacts/\S+")
ACKNOWLEDGED = re.compile(f"is at ({ADDRESS.pattern})")
FLOW_RUN = re.compile(r"Beginning flow run '([\w-]+)'")
CANCELLING = {"type": "CANCELLING", "name": "Cancelling"}
ASK_EVERY_S = 1.0
API_TIMEOUT_S, API_PATIENCE_S = 30.0, 180.0
TERMINAL = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
NEEDS_PROCESS = ("PENDING", "RUNNING", "CANCELLING")
LOST_AFTER_S = 30.0
DEPLOY_LIMIT_S, CLOSE_LIMIT_S = 240.0, 30.0
TAIL_LINES = 15
POLL_S = 0.1
LIBC = ctypes.CDLL(None)
PR_SET_PDEATHSIG = 1


class RunnerAlone:
    """`python -m tests.chaos.chain`: no Prefect."""

    name = "runner alone"
    runner = "runner"
    module: tuple[str, ...] = ("tests.chaos.chain",)
    further_targets: tuple[str, ...] = ()
    wants_prefect = False

    def __init__(
        self,
        folder: Path,
        store: str,
        num_processes: int,
        until: str | None = None,
        variables: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
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
            **variables,
        }

    def start(self) -> None:
        """Run the same command (again)."""
        until = ["--until", self._until] if self._until else []
        self._spawn(*self.module, "--file", str(self._file), *until)

    def _spawn(self, *command: str) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *command], cwd=PROJECT, env=self.environment, stdout=log, stderr=log,
                start_new_session=True, preexec_fn=end_with_us,
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

    def must_end(self, processes: list[Process], target: str, number: signal.Signals) -> list[Process]:
        """Those that may not be alive a while after `target` got the signal."""
        if target == self.runner:
            return self.without_worker(processes)
        supervisor = self.supervisor(processes)
        return [supervisor, *below(supervisor, processes)] if supervisor else []

    def without_worker(self, processes: list[Process]) -> list[Process]:
        """Those that belong to a run."""
        return processes

    def acknowledged(self) -> list[str]:
        """The address of every artifact that was reported as published."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return list(dict.fromkeys(ACKNOWLEDGED.findall(text)))

    def tail(self) -> str:
        """The end of what the run said."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-TAIL_LINES:])

    def close(self) -> None:
        """End whatever is left."""
        deadline = time.monotonic() + CLOSE_LIMIT_S
        while (left := marked(self.mark)) and time.monotonic() < deadline:
            for process in left:
                with suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGKILL)
            time.sleep(POLL_S)
        if self.process is not None:
            self.process.wait(CLOSE_LIMIT_S)


class Flow(RunnerAlone):
    """`python -m infra.run demo`: the flow in the process that was started."""

    name = "flow"
    runner = "flow process"
    module = ("infra.run", ENTRY)
    further_targets = ("cancel",)
    wants_prefect = True

    def cancel(self) -> None:
        """Cancel the newest flow run through Prefect's API, as its UI does."""
        names = FLOW_RUN.findall(self.log.read_text(errors="replace"))
        [run] = ask_prefect(self.environment, "flow_runs/filter", flow_runs={"name": {"any_": names[-1:]}})
        ask_prefect(self.environment, f"flow_runs/{run['id']}/set_state", state=CANCELLING)

    def start(self) -> None:
        self._spawn(*self.module, "--file", str(self._file), "--output", str(self.log.parent / "summary"))


class FromWorker(RunnerAlone):
    """A deployment that a worker of its own runs; the worker may be killed too."""

    name = "flow from a worker"
    runner = "flow process"
    further_targets = ("worker", "cancel")
    wants_prefect = True

    def __init__(
        self,
        folder: Path,
        store: str,
        num_processes: int,
        until: str | None = None,
        variables: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        super().__init__(folder, store, num_processes, until, {"PREFECT_WORKER_QUERY_SECONDS": "2", **variables})
        self._run_ids: list[str] = []
        self._state, self._asked_at, self._alive_at = "", 0.0, 0.0
        content = yaml.safe_load(self._file.read_text())
        self._pool: str = content["deployments"][0]["work_pool"]["name"]
        unmarked = {name: value for name, value in self.environment.items() if name != MARK}
        deploy = [sys.executable, "-m", "infra.deploy", "--file", str(self._file)]
        subprocess.run(deploy, cwd=PROJECT, env=unmarked, check=True, capture_output=True, timeout=DEPLOY_LIMIT_S)

    def start(self) -> None:
        self._keep_worker()
        [deployment] = self._ask("deployments/filter", deployments={"name": {"any_": [ENTRY]}})
        once = uuid.uuid4().hex
        run = self._ask(f"deployments/{deployment['id']}/create_flow_run", idempotency_key=once)
        self._run_ids.append(run["id"])
        self._state, self._asked_at, self._alive_at = "", 0.0, time.monotonic()

    def status(self) -> int | None:
        """As the others'; a run whose process died with nobody to tell Prefect counts as failed."""
        self._keep_worker()
        now = time.monotonic()
        if now - self._asked_at >= ASK_EVERY_S:
            [run] = self._ask("flow_runs/filter", flow_runs={"id": {"any_": self._run_ids[-1:]}})
            self._state, self._asked_at = run["state_type"], now
            if self._state not in NEEDS_PROCESS or self.main_process(marked(self.mark)) is not None:
                self._alive_at = now
        if now - self._alive_at > LOST_AFTER_S:
            return 1
        return None if self._state not in TERMINAL else int(self._state != "COMPLETED")

    def _keep_worker(self) -> None:
        """Start a worker in place of one that has ended, as a machine's service manager does."""
        if self.process is None or self.process.poll() is not None:
            self._spawn("prefect", "worker", "start", "--pool", self._pool)

    def main_process(self, processes: list[Process]) -> Process | None:
        supervisor = self.supervisor(processes)
        parent = supervisor.parent if supervisor else None
        engines = [one for one in processes if one.says("prefect.engine")]
        return next((one for one in processes if one.pid == parent), engines[0] if engines else None)

    def worker(self, processes: list[Process]) -> Process | None:
        """The worker, if it lives."""
        return super().main_process(processes)

    def must_end(self, processes: list[Process], target: str, number: signal.Signals) -> list[Process]:
        if target != "worker":
            return super().must_end(processes, target, number)
        return processes if number == signal.SIGTERM else [one for one in processes if one == self.worker(processes)]

    def without_worker(self, processes: list[Process]) -> list[Process]:
        worker = self.worker(processes)
        return [one for one in processes if one != worker]

    def acknowledged(self) -> list[str]:
        """As the tasks' final states say: the log of a flow from a worker lies with Prefect."""
        runs = self._ask("task_runs/filter", flow_runs={"id": {"any_": self._run_ids}}, sort="END_TIME_DESC")
        done = [run["state"]["message"] for run in reversed(runs) if run["state_type"] == "COMPLETED"]
        return list(dict.fromkeys(message for message in done if ADDRESS.fullmatch(message)))

    def tail(self) -> str:
        """The last messages that Prefect has of the newest run."""
        wanted = {"flow_run_id": {"any_": self._run_ids[-1:]}}
        logs = self._ask("logs/filter", logs=wanted, sort="TIMESTAMP_DESC", limit=TAIL_LINES)
        return "\n".join([f"the run is {self._state}", *(log["message"] for log in reversed(logs))])

    def cancel(self) -> None:
        """Cancel the newest run."""
        self._ask(f"flow_runs/{self._run_ids[-1]}/set_state", state=CANCELLING)

    def _ask(self, path: str, **body: Any) -> Any:
        return ask_prefect(self.environment, path, **body)


def ask_prefect(environment: Mapping[str, str], path: str, **body: Any) -> Any:
    """What Prefect's REST API answers to a POST, which may be sent several times: a busy server is late to answer."""
    headers = {"Content-Type": "application/json"}
    request = Request(f"{environment['PREFECT_API_URL']}/{path}", json.dumps(body).encode(), headers)
    deadline = time.monotonic() + API_PATIENCE_S
    while True:
        try:
            with urlopen(request, timeout=API_TIMEOUT_S) as answer:
                return json.load(answer)
        except OSError as error:
            refused = isinstance(error, HTTPError) and error.code < 500
            if refused or time.monotonic() > deadline:
                raise
        time.sleep(ASK_EVERY_S)


def end_with_us() -> None:
    """Before a run starts: it gets SIGTERM when these tests end, and heeds it.

    A process whose parent ignores SIGINT, as a shell's background jobs do, would ignore SIGTERM too.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def wait_until_ended(launch: RunnerAlone, limit_s: float) -> int | None:
    """The run's status once it has ended; None if it has not within the limit."""
    deadline = time.monotonic() + limit_s
    while (status := launch.status()) is None and time.monotonic() < deadline:
        time.sleep(POLL_S)
    return status


LAUNCHES: Mapping[str, type[RunnerAlone]] = {"alone": RunnerAlone, "flow": Flow, "worker": FromWorker}
