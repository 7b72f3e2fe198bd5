"""Run an entry of a pipelines file here: start what it needs, watch it, show what came of it.

    python -m infra.run demo
    python -m infra.run mine --file my_pipelines.yaml --seed 1 --set ppo.kl_coef=0.1

An S3 server and a Prefect server are started unless ALIGNMENT_STORE and PREFECT_API_URL name others, and end
with the run. The figures are also written to OUTPUT/summary.json.
"""

import argparse
import atexit
import contextlib
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

import yaml
from rich.console import Console
from rich.table import Table

from infra import local_s3
from infra.memory import PeakMemory
from infra.services import PrefectServer, prefect_server
from tasks.errors import InputError

if TYPE_CHECKING:
    from flows.summary import Summary
    from infra.entries import Entry

PROJECT = Path(__file__).resolve().parent.parent
LOCAL = PROJECT / ".local"
RECORD_TIMEOUT_S = 10.0


class Refused(Exception):
    """PPO was not started, or the model was not let out; the message says who refused what, and by which rules."""


@dataclass(frozen=True)
class StageRun:
    """How long a stage took, and whether its artifact was there before."""

    seconds: float
    already_done: bool


def main() -> int:
    """The exit status: 0 when the chain is done, 1 when it failed, 2 when the input was refused, 130 on Ctrl-C.

    3 when the certificate refused the reward model, or the gate the model.
    """
    arguments = _parse()
    try:
        _run(arguments)
    except Refused as refusal:
        print(f"\nrefused by {refusal}", file=sys.stderr)
        return 3
    except InputError as error:
        print(f"\nrefused: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on where it stopped", file=sys.stderr)
        return 130
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Run an entry of a pipelines file here.")
    parser.add_argument("entry", help="name of the entry")
    parser.add_argument("--file", type=Path, default=PROJECT / "pipelines.yaml", help="the pipelines file")
    parser.add_argument("--seed", type=int, help="seed of every stage")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="one option, e.g. ppo.kl_coef=0.1; repeatable"
    )
    parser.add_argument("--pipeline", metavar="NAME", help="whose champion to beat and become; default: the entry")
    parser.add_argument("--output", type=Path, help="folder for summary.json; default: the entry's name")
    return parser.parse_args()


def _run(arguments: argparse.Namespace) -> None:
    started = time.monotonic()
    servers = contextlib.ExitStack()
    atexit.register(servers.close)  # before Prefect registers its own: what it still has to send needs the server
    with PeakMemory() as memory:
        prefect = start_servers(servers)
        from flows.recording import PIPELINE_VARIABLE  # Prefect reads its settings at import: the servers' come first
        from infra.entries import read_entries

        entries = read_entries(arguments.file)
        if arguments.entry not in entries:
            raise InputError(f"{arguments.file} has no entry '{arguments.entry}'; it has {', '.join(entries)}.")
        if prefect is not None:
            prefect.wait_until_ready()
            print(f"watch it at {prefect.ui_url}", flush=True)
        os.environ[PIPELINE_VARIABLE] = arguments.pipeline or arguments.entry
        summary, stages = _run_flow(entries[arguments.entry], arguments.seed, _overrides(arguments.set))
    seconds = {name: stage.seconds for name, stage in stages.items()} | {"total": time.monotonic() - started}
    output = arguments.output or Path(arguments.entry)
    result = summary.model_dump() | {
        "export_uri": summary.export_uri,
        "seconds": seconds,
        "peak_rss_bytes": memory.peak_bytes,
    }
    _write(output / "summary.json", result)
    _print(summary, seconds, memory.peak_bytes, output)
    if all(stage.already_done for stage in stages.values()):
        print("Every stage was done already; nothing was computed again.")


def start_servers(servers: contextlib.ExitStack) -> PrefectServer | None:
    """Local S3 and Prefect, unless the environment names others; tells this process where they are.

    Returns Prefect's server, which may still be starting; None if the environment names one.
    """
    prefect = None
    if "PREFECT_API_URL" not in os.environ:
        prefect = servers.enter_context(prefect_server(LOCAL))
        os.environ["PREFECT_API_URL"] = prefect.api_url
    if local_s3.STORE_VARIABLE not in os.environ:
        s3 = servers.enter_context(local_s3.start(local_s3.FOLDER))
        os.environ.update(s3.environment | {local_s3.STORE_VARIABLE: local_s3.STORE})
    return prefect


def _overrides(settings: Sequence[str]) -> dict[str, Any]:
    """NAME=VALUE pairs, each value read as YAML."""
    for setting in settings:
        if "=" not in setting:
            raise InputError(f"--set {setting}: expected NAME=VALUE, such as ppo.kl_coef=0.1.")
    return {name: yaml.safe_load(value) for name, value in (setting.split("=", 1) for setting in settings)}


def _run_flow(entry: "Entry", seed: int | None, overrides: Mapping[str, Any]) -> tuple["Summary", dict[str, StageRun]]:
    """The flow's summary, and how each stage went."""
    from flows.alignment import alignment
    from tasks.certification import FAILED_BY_CERTIFICATE
    from tasks.release import FAILED_BY_GATE

    parameters = entry.parameters
    state = alignment(
        parameters.pipeline,
        model=parameters.model,
        seed=parameters.seed if seed is None else seed,
        overrides={**parameters.overrides, **overrides},
        return_state=True,
    )
    refusers = {FAILED_BY_CERTIFICATE: "the reward model's certificate", FAILED_BY_GATE: "the gate"}
    if state.name in refusers:
        raise Refused(f"{refusers[state.name]}: {state.message}")
    summary = cast("Summary", state.result())
    assert state.state_details.flow_run_id is not None
    return summary, _stage_runs(state.state_details.flow_run_id)


def _stage_runs(flow_run_id: UUID) -> dict[str, StageRun]:
    """Each stage as Prefect recorded it; the record of a task trails the task by a moment."""
    from prefect import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
    from prefect.client.schemas.sorting import TaskRunSort

    from flows.recording import REPORTED
    from tasks.release import PASSED
    from tasks.stages import ALREADY_DONE

    wanted = FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id]))
    deadline = time.monotonic() + RECORD_TIMEOUT_S
    with get_client(sync_client=True) as client:
        while True:
            runs = client.read_task_runs(flow_run_filter=wanted, sort=TaskRunSort.EXPECTED_START_TIME_ASC)
            if all(run.end_time for run in runs) or time.monotonic() > deadline:
                break
            time.sleep(0.2)
    stages: dict[str, StageRun] = {}
    for run in runs:
        name = run.name.rsplit("-", 1)[0]
        before = stages.get(name, StageRun(0.0, already_done=True))
        seconds = before.seconds + run.total_run_time.total_seconds()
        stages[name] = StageRun(seconds, before.already_done and run.state_name in (ALREADY_DONE, PASSED, REPORTED))
    return stages


def _write(path: Path, result: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    partial.replace(path)


def _print(summary: "Summary", seconds: Mapping[str, float], peak_bytes: int, output: Path) -> None:
    console = Console()
    figures = Table(title="What came of it", show_header=False, title_justify="left")
    figures.add_column(no_wrap=True)
    figures.add_column(overflow="fold")
    for name, value in summary.figures().items():
        figures.add_row(name, value)
    figures.add_row("peak memory of everything", f"{peak_bytes / 2**30:.2f} GiB")
    figures.add_row("figures as JSON", str(output / "summary.json"))
    console.print(figures)
    samples = Table(title="Held-out prompts, chosen by the seed", show_lines=True, title_justify="left")
    for column in ("prompt", "SFT", "PPO"):
        samples.add_column(column, ratio=1)
    for sample in summary.samples:
        samples.add_row(
            sample.prompt, f"{sample.sft}\n[{sample.sft_score:+.2f}]", f"{sample.ppo}\n[{sample.ppo_score:+.2f}]"
        )
    console.print(samples)
    console.print("seconds: " + ", ".join(f"{stage} {value:.1f}" for stage, value in seconds.items()))


if __name__ == "__main__":
    sys.exit(main())
