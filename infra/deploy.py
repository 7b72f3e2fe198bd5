"""Make the Prefect server hold what pipelines.yaml says, no more and no less.

    python -m infra.deploy [--file pipelines.yaml]

Checks the whole file first; then makes the work pools and the limit on GPU tasks, deploys every entry through
`prefect deploy`, and removes what Prefect leaves behind: deployments and schedules of ours that left the file.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import httpx
from prefect import get_client
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.responses import DeploymentResponse
from prefect.exceptions import ObjectNotFound

from flows.alignment import alignment
from infra import local_s3
from infra.entries import OURS, Entry, read_entries
from infra.run import PROJECT
from tasks.errors import InputError

GPU_TASKS_AT_ONCE = 1


def main() -> int:
    """The exit status: 0 when deployed, 2 when the file or the environment was refused."""
    parser = argparse.ArgumentParser(description="Deploy every entry of a pipelines file.")
    parser.add_argument("--file", type=Path, default=PROJECT / "pipelines.yaml", help="the pipelines file")
    parser.add_argument("--gpu-tasks-at-once", type=int, default=GPU_TASKS_AT_ONCE, help="limit over all workers")
    arguments = parser.parse_args()
    try:
        entries = read_entries(arguments.file)
        if local_s3.STORE_VARIABLE not in os.environ:
            local_s3.start_detached(local_s3.FOLDER)
        deploy(arguments.file, entries, arguments.gpu_tasks_at_once)
    except InputError as error:
        print(f"refused: {error}", file=sys.stderr)
        return 2
    return 0


def deploy(file: Path, entries: Mapping[str, Entry], gpu_tasks_at_once: int) -> None:
    """Bring the server to the state of `entries`; raises InputError if it cannot be reached or refuses one."""
    with get_client(sync_client=True) as client:
        _reach(client)
        for name in {entry.work_pool.name for entry in entries.values()}:
            _make_work_pool(client, name)
        _limit_gpu_tasks(client, gpu_tasks_at_once)
        _prefect_deploy(file)
        for deployment in _deployments_of_ours(client):
            if deployment.name in entries:
                _remove_old_schedules(client, deployment, entries[deployment.name])
            else:
                client.delete_deployment(deployment.id)
                print(f"removed {alignment.name}/{deployment.name}: it left {file.name}")
    pools = ", ".join(sorted({entry.work_pool.name for entry in entries.values()}))
    print(f"deployed {', '.join(f'{alignment.name}/{name}' for name in entries)}")
    print(f"start a worker: prefect worker start --pool {pools}")


def _reach(client: SyncPrefectClient) -> None:
    try:
        client.api_healthcheck()
        client.hello()
    except httpx.HTTPError as error:
        raise InputError(
            f"Prefect's API at {client.api_url} cannot be reached ({error}). "
            "Start it with `prefect server start`, and set PREFECT_API_URL if it is elsewhere."
        ) from error


def _make_work_pool(client: SyncPrefectClient, name: str) -> None:
    try:
        client.read_work_pool(name)
    except ObjectNotFound:
        client.create_work_pool(WorkPoolCreate(name=name, type="process"))
        print(f"made work pool {name}")


def _limit_gpu_tasks(client: SyncPrefectClient, slots: int) -> None:
    client.create_concurrency_limit(tag="gpu", concurrency_limit=slots)


def _prefect_deploy(file: Path) -> None:
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--prefect-file", str(file), "--all"]
    done = subprocess.run(command, cwd=PROJECT, env=os.environ | {"PWD": str(PROJECT)}, capture_output=True, text=True)
    if done.returncode != 0 or "Skipping" in done.stdout:
        raise InputError(f"`prefect deploy` refused {file}:\n{done.stdout}{done.stderr}")


def _deployments_of_ours(client: SyncPrefectClient) -> list[DeploymentResponse]:
    flow = client.read_flow_by_name(alignment.name)
    return [one for one in client.read_deployments() if one.flow_id == flow.id and OURS in one.tags]


def _remove_old_schedules(client: SyncPrefectClient, deployment: DeploymentResponse, entry: Entry) -> None:
    kept = {schedule.slug for schedule in entry.schedules}
    for schedule in deployment.schedules:
        if schedule.slug not in kept:
            client.delete_deployment_schedule(deployment.id, schedule.id)
            print(f"removed schedule {schedule.slug} of {deployment.name}: it left the file")


if __name__ == "__main__":
    sys.exit(main())
