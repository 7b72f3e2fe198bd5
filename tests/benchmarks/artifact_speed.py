"""Publishing and fetching an artifact, every chunk verified, against boto3's upload_file and download_file.

    python -m tests.benchmarks.artifact_speed [--servers swift ceph] [--sizes-mib 256 1024] [--rounds 5]
        [--output docs/results/artifact-speed.md]

boto3's classic client first finds its best chunk size and concurrency on each server. Then both take turns, each
transfer in a process of its own, against one file of random bytes. Publishing hashes the file, sends it and writes the
manifest; fetching hashes what came and brings it to the disk. boto3 does neither.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import boto3

from infra.provenance import ROOT, provenance
from tasks.markdown import table
from tests import s3_servers
from tests.benchmarks.artifact_worker import BUCKET, FILE

SERVERS = {"swift": s3_servers.swift, "ceph": s3_servers.ceph}
CHUNKS_MIB, CONCURRENCIES = (8, 16, 64), (4, 10)
WRITTEN_BY = {"ours": "artifacts/", "boto3": "name"}
NOTE = """boto3 is at the best of chunks of 8, 16 and 64 MiB with 4 and 10 at once; ours has no setting. Medians; both
took turns, each transfer in a process of its own, from and to the same disk. Server and client share the machine. CPU
and peak memory are the client's. Publishing hashes all before it sends, has the server check each chunk, and ends with
the manifest; fetching hashes each chunk and brings it to the disk, which boto3 leaves to the kernel: "on disk" is the
ratio where the clock of both stops when an fsync has ended. Not measured: TLS, a network with latency, servers on other
machines, more than one file."""
HEADER = (
    "server", "MiB", "what", "boto3's best", "boto3 MiB/s", "ours MiB/s", "ours / boto3", "on disk",
    "boto3 CPU s", "ours CPU s", "boto3 peak MiB", "ours peak MiB",
)  # fmt: skip


@dataclass(frozen=True)
class Place:
    """A server's environment, and a folder with the file to send."""

    environment: Mapping[str, str]
    source: Path

    def measured(self, what: str, who: str, options: Sequence[str] = ()) -> dict[str, float]:
        """Seconds and bytes of one transfer; what is fetched was sent by the same side before."""
        with tempfile.TemporaryDirectory(dir=self.source.parent) as fresh:
            bucket = self.bucket()
            if what == "publish":
                bucket.objects.all().delete()
            elif not any(item.key.startswith(WRITTEN_BY[who]) for item in bucket.objects.all()):
                self._run("publish", who, self.source, options)
            os.sync()
            return self._run(what, who, self.source if what == "publish" else Path(fresh), options)

    def bucket(self) -> Any:
        keys = [self.environment[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")]
        session = boto3.session.Session(*keys, region_name=self.environment["AWS_REGION"])
        return session.resource("s3", endpoint_url=self.environment["AWS_ENDPOINT_URL_S3"]).Bucket(BUCKET)

    def _run(self, what: str, who: str, folder: Path, options: Sequence[str]) -> dict[str, float]:
        command = [sys.executable, "-m", "tests.benchmarks.artifact_worker", what, who, str(folder), "name", *options]
        done = subprocess.run(
            command, cwd=ROOT, env={**os.environ, **self.environment}, stdout=subprocess.PIPE, text=True, check=True
        )
        return dict(json.loads(done.stdout))


def main() -> None:
    """Measure and write the page."""
    arguments = _parse()
    rows = []
    for server, size_mib in itertools.product(arguments.servers, arguments.sizes_mib):
        with tempfile.TemporaryDirectory() as folder, _served(server, Path(folder), size_mib) as place:
            for what in ("publish", "fetch"):
                rows.append([server, str(size_mib), what, *compared(place, what, size_mib, arguments.rounds)])
                print(*rows[-1], sep=" | ", flush=True)
    command = " ".join(["python -m tests.benchmarks.artifact_speed", *sys.argv[1:]])
    versions = f"boto3 {version('boto3')}, OpenStack Swift {version('swift')}, {_ceph_version()}."
    parts = ["# Speed of artifacts", f"`{command}`", provenance(), versions, NOTE, table(HEADER, rows)]
    arguments.output.write_text("\n\n".join(parts) + "\n")


def compared(place: Place, what: str, size_mib: int, num_rounds: int) -> list[str]:
    """boto3's best settings, and the medians of both sides at them, who take turns."""
    settings = [
        ("--chunk-mib", str(chunk), "--concurrency", str(number))
        for chunk, number in itertools.product(CHUNKS_MIB, CONCURRENCIES)
    ]
    best = min(settings, key=lambda options: place.measured(what, "boto3", options)["wall_s"])
    theirs, ours = [], []
    for _ in range(num_rounds):
        theirs.append(place.measured(what, "boto3", best))
        ours.append(place.measured(what, "ours"))
    return [
        f"{best[1]} MiB x {best[3]}",
        *(f"{size_mib / _median(runs, 'wall_s'):.0f}" for runs in (theirs, ours)),
        *(f"{_median(theirs, clock) / _median(ours, clock):.2f}" for clock in ("wall_s", "on_disk_s")),
        *(f"{_median(runs, 'cpu_s'):.2f}" for runs in (theirs, ours)),
        *(f"{_median(runs, 'peak_bytes') / 2**20:.0f}" for runs in (theirs, ours)),
    ]


@contextmanager
def _served(server: str, folder: Path, size_mib: int) -> Iterator[Place]:
    for name in ("server", "work", "work/source"):
        (folder / name).mkdir()
    with (folder / "work" / "source" / FILE).open("wb") as file:
        for _ in range(size_mib):
            file.write(os.urandom(2**20))
    with SERVERS[server](folder / "server") as environment:
        place = Place(environment, folder / "work" / "source")
        place.bucket().create()
        yield place


def _median(runs: Sequence[Mapping[str, float]], key: str) -> float:
    return median(run[key] for run in runs)


def _ceph_version() -> str:
    return " ".join(subprocess.run(["ceph", "--version"], capture_output=True, text=True).stdout.split()[:3])


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure publish and fetch against boto3.")
    parser.add_argument("--servers", nargs="+", choices=SERVERS, default=[*SERVERS])
    parser.add_argument("--sizes-mib", nargs="+", type=int, default=[256, 1024])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path(".local/artifact-speed.md"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
