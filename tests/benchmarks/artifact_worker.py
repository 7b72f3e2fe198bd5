"""One transfer in a process of its own: seconds, CPU seconds and peak memory as JSON on standard output.

The clock runs from the first byte asked for: client and store are there before, and known are what the server can do
and the code's version, without which no stage has a key. A second time is taken when all that was written is on the
disk.
"""

import argparse
import json
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.client import Config

from tasks.artifacts import artifact_key, code_version, fetch, find, publish
from tasks.storage.s3 import S3Store

BUCKET = "artifact-speed"
STAGE, FILE = "benchmark", "model.safetensors"


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("publish", "fetch"))
    parser.add_argument("who", choices=("ours", "boto3"))
    parser.add_argument("folder", type=Path, help="holds the file to publish, or gets the one that is fetched")
    parser.add_argument("name", help="under which the file is stored")
    parser.add_argument("--chunk-mib", type=int, default=8)
    parser.add_argument("--concurrency", type=int, default=10)
    arguments = parser.parse_args()
    transfer = (_ours if arguments.who == "ours" else _boto3)(arguments)
    wall_s, cpu_s = time.monotonic(), time.process_time()
    transfer()
    measured = {"wall_s": time.monotonic() - wall_s, "cpu_s": time.process_time() - cpu_s}
    measured["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    _bring_to_disk(arguments.folder)
    print(json.dumps(measured | {"on_disk_s": time.monotonic() - wall_s}))


def _bring_to_disk(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def _ours(arguments: argparse.Namespace) -> Callable[[], Any]:
    store, key = S3Store(BUCKET), artifact_key(STAGE, {"name": arguments.name}, {}, "")
    store.abilities()
    code_version(STAGE)
    if arguments.what == "publish":
        return lambda: publish(store, arguments.folder, stage=STAGE, key=key, kind="model", config={}, inputs={})
    artifact = find(store, STAGE, key)
    assert artifact is not None
    return lambda: fetch(store, artifact, arguments.folder)


def _boto3(arguments: argparse.Namespace) -> Callable[[], Any]:
    client = boto3.client(
        "s3",
        config=Config(
            s3={"preferred_transfer_client": "classic"},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            max_pool_connections=arguments.concurrency,
        ),
    )
    client.list_objects_v2(Bucket=BUCKET, MaxKeys=1)
    config = TransferConfig(
        multipart_chunksize=arguments.chunk_mib * 2**20,
        max_concurrency=arguments.concurrency,
        preferred_transfer_client="classic",
    )
    path = str(arguments.folder / FILE)
    if arguments.what == "publish":
        return lambda: client.upload_file(path, BUCKET, arguments.name, Config=config)
    return lambda: client.download_file(BUCKET, arguments.name, path, Config=config)


if __name__ == "__main__":
    main()
