"""What Prefect's UI shows of a stage, and what a stage asks Prefect's API; training goes on while that is away."""

import base64
import contextlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast
from uuid import UUID

import httpx
from prefect import get_client
from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.client.schemas.objects import StateType
from prefect.exceptions import PrefectHTTPStatusError
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_REQUEST_TIMEOUT, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from tasks.artifacts import Artifact, read_files
from tasks.runner import Workplace

LOG_EVERY_S = 5.0
DRAW_EVERY_S = 10.0
NUM_FIGURES_IN_LINE = 4
API_TIMEOUT_S = 5.0
API_PATIENCE_S = 1800.0
API_PAUSE_S = 5.0
API_ERRORS = (httpx.TransportError, httpx.HTTPStatusError, PrefectHTTPStatusError)


def read_report(artifact: Artifact, place: Workplace) -> dict[str, Any]:
    """The figures that the stage wrote of its own work; empty for what no stage of ours made."""
    report: dict[str, Any] = json.loads(read_files(place.store, artifact, "report.json").get("report.json", "{}"))
    return report


class Progress:
    """Shows a stage's metrics while it runs: a line in the log, and a bar in the UI."""

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self.logged_at = self.drawn_at = 0.0
        self.artifact_id: UUID | None = None

    def __call__(self, record: Mapping[str, float]) -> None:
        now, step, total = time.monotonic(), record["step"], record["total_steps"]
        if now - self.logged_at >= LOG_EVERY_S or step == total:
            self.logged_at = now
            get_run_logger().info(progress_line(self.stage, record))
        if now - self.drawn_at >= DRAW_EVERY_S or step == total:
            self.drawn_at = now
            self._draw(100 * step / total)

    def _draw(self, percent: float) -> None:
        with _api_may_be_away():
            if self.artifact_id is None:
                key = f"{_dashed(self.stage)}-progress"
                made = create_progress_artifact(percent, key=key, description=f"Progress of {self.stage}")
                self.artifact_id = cast(UUID, made)
            else:
                update_progress_artifact(self.artifact_id, percent)


def progress_line(stage: str, record: Mapping[str, float]) -> str:
    """`record` as one line: a bar of 20 characters, the step, and the first few figures."""
    step, total = int(record["step"]), int(record["total_steps"])
    filled = 20 * step // total
    figures = [f"{name} {value:.4g}" for name, value in record.items() if name not in ("step", "total_steps", "time")]
    return f"{stage:<13} {'█' * filled}{'░' * (20 - filled)} {step}/{total}  {'  '.join(figures[:NUM_FIGURES_IN_LINE])}"


def run_was_cancelled() -> bool:
    """Whether the API says that this flow run shall end; a worker that was restarted does not tell us."""
    with _api_may_be_away(), get_client(sync_client=True) as client:
        state = client.read_flow_run(UUID(flow_run.id)).state
        return state is not None and state.type in (StateType.CANCELLING, StateType.CANCELLED, StateType.CRASHED)
    return False


@contextlib.contextmanager
def _api_may_be_away() -> Iterator[None]:
    """Training goes on while Prefect's API cannot be reached: it is asked once, and not waited for."""
    at_once = {PREFECT_CLIENT_MAX_RETRIES: 0, PREFECT_API_REQUEST_TIMEOUT: API_TIMEOUT_S}
    try:
        with temporary_settings(at_once):
            yield
    except API_ERRORS as error:
        logging.getLogger(__name__).warning("Prefect's API is away: %s", error)


def when_api_is_back(show: Callable[[], None]) -> None:
    """Show something, waiting for the API if need be: what is done stays done without it."""
    deadline = time.monotonic() + API_PATIENCE_S
    while time.monotonic() < deadline:
        try:
            show()
            return
        except API_ERRORS as error:
            logging.getLogger(__name__).warning("Prefect's API is away, the stage's figures wait for it: %s", error)
            time.sleep(API_PAUSE_S)


def show_log(stage: str, address: str, tail: str) -> None:
    """Where the log of an attempt without success is, and its end, as an artifact of the run."""
    with _api_may_be_away():
        text = f"The whole log: `{address}`\n\n```\n{tail}\n```"
        create_markdown_artifact(text, key=f"{_dashed(stage)}-log", description=f"Why {stage} did not succeed")


def show_figures(stage: str, artifact: Artifact, place: Workplace) -> None:
    """A table of the stage's figures, and its report and curves as Markdown, as artifacts of the run."""
    figures = read_report(artifact, place)
    rows = [{"figure": name, "value": value} for name, value in figures.items() if isinstance(value, int | float | str)]
    create_table_artifact(table=rows, key=f"{_dashed(stage)}-figures", description=f"`{artifact.uri}`")
    pages = [_as_markdown(*page) for page in read_files(place.store, artifact, "report.md", "*.png").items()]
    if pages:
        create_markdown_artifact("\n\n".join(pages), key=f"{_dashed(stage)}-report", description=f"`{artifact.uri}`")


def _as_markdown(name: str, content: bytes) -> str:
    if name.endswith(".png"):
        return f"![{name}](data:image/png;base64,{base64.b64encode(content).decode()})"
    return content.decode()


def _dashed(name: str) -> str:
    return name.replace("_", "-")
