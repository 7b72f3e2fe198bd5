"""Publishers and fetchers behind a proxy that spoils requests: is every byte right, every publish whole or absent?

A round: folders of random bytes are published by threads, each second folder by two at once; then, undisturbed, each
key is looked up, and what is there must be the folder; then, disturbed again, everything is fetched.
"""

import random
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from tasks.artifacts import Artifact, fetch, find, publish, store_at
from tasks.errors import InputError
from tests.chaos.certificate import server_context
from tests.chaos.faults import Fault, FaultPlan
from tests.chaos.proxy import proxied
from tests.chaos.servers import ENDPOINT, account, port_of

STAGE = "sft"
CHUNK_BYTES = 5 * 2**20
FAULT_SHARE = 0.3
NUM_FOLDERS = 4
NUM_SMALL_FILES = 12
SMALL_BYTES = 50_000
AT_ONCE_S = 20.0
LARGE_BYTES = 2 * CHUNK_BYTES + 1

T = TypeVar("T")


@dataclass
class Tally:
    """What came of the transfers over one server, with or without TLS."""

    server: str
    tls: bool
    requests: int = 0
    faults: dict[str, int] = field(default_factory=dict)
    published: int = 0
    fetched: int = 0
    given_up: list[str] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def run_transfers(
    server: str,
    variables: Mapping[str, str],
    folder: Path,
    seed: int,
    num_faulted: int,
    tls: bool,
    say: Callable[[str], None],
    share: float = FAULT_SHARE,
) -> Tally:
    """Rounds of publishing and fetching until at least `num_faulted` requests met a fault."""
    tally = Tally(server, tls)
    plan = FaultPlan(seed, share)
    context, trusted = server_context(folder) if tls else (None, None)
    with proxied(port_of(variables), plan, context) as (_, port):
        trust = {"AWS_CA_BUNDLE": str(trusted)} if tls else {}
        with account({**variables, ENDPOINT: _loopback(port, tls), **trust}):
            number = 0
            while plan.num_faulted < num_faulted:
                _run_round(f"s3://chaos/{server}-{tls}-{seed}-{number}", folder / "round", seed + number, plan, tally)
                number += 1
                say(f"{server}{' over TLS' if tls else ''}: {plan.num_faulted} of {num_faulted} faulted requests")
    tally.requests = plan.num_requests
    tally.faults = {kind.value: count for kind, count in sorted(plan.counts.items())}
    return tally


def survive_each_fault(variables: Mapping[str, str], folder: Path, say: Callable[[str], None]) -> list[str]:
    """For each kind, every request meets it once: publish and fetch must get through; returns what did not."""
    violations = []
    for kind in Fault:
        if kind is Fault.EXPIRED:
            continue
        say(f"once for every request: {kind.value}")
        plan = FaultPlan(0, 1.0, (kind,), times=1)
        with proxied(port_of(variables), plan) as (_, port), account({**variables, ENDPOINT: _loopback(port)}):
            violations += [f"{kind.value}: {one}" for one in _there_and_back(folder / kind.name)]
        if not plan.num_faulted:
            violations.append(f"{kind.value}: no request met it")
    return violations


def _there_and_back(folder: Path) -> list[str]:
    """What is wrong with publishing a small folder and fetching it again."""
    uri = f"s3://chaos/once-{folder.name.lower()}"
    source = _make_folder(folder / "source", folder.name, num_files=2, large_bytes=CHUNK_BYTES + 1)
    try:
        fetched = _fetch(uri, _publish(uri, source, "0" * 32), folder / "cache")
    except Exception as error:
        return [_short(error)]
    return [] if contents(fetched) == contents(source) else ["wrong bytes were delivered"]


def refuse_expired_credentials(variables: Mapping[str, str], folder: Path) -> list[str]:
    """What is wrong with how credentials that expire between two requests are refused; nothing if it is at once."""
    source = _make_folder(folder / "expiring", "expiring")
    plan = FaultPlan(0, share=1.0, kinds=(Fault.EXPIRED,))
    plan.enabled = False
    with proxied(port_of(variables), plan) as (_, port), account({**variables, ENDPOINT: _loopback(port)}):
        store = store_at("s3://chaos/expired")
        plan.enabled = True
        started = time.monotonic()
        try:
            publish(store, source, stage=STAGE, key="0" * 32, kind="model", config={}, inputs={})
        except InputError as error:
            late = time.monotonic() - started > AT_ONCE_S
            told = "Log in again" in str(error)
            return ["expired: it took long"] * late + [f"expired: it does not say what to do: {error}"] * (not told)
        return ["expired: nothing was refused"]


def _run_round(uri: str, folder: Path, seed: int, plan: FaultPlan, tally: Tally) -> None:
    keys = [f"{seed * 100 + number:032x}" for number in range(NUM_FOLDERS)]
    sources = {key: _make_folder(folder / f"source-{key}", key) for key in keys}
    jobs = [*keys, *keys[::2]]
    plan.enabled = True
    published = _at_once([partial(_publish, uri, sources[key], key) for key in jobs])
    plan.enabled = False
    artifacts = _look_up(uri, sources, list(zip(jobs, published, strict=True)), folder, tally)
    plan.enabled = True
    fetched = _at_once([partial(_fetch, uri, artifact, folder / key) for key, artifact in artifacts.items()])
    plan.enabled = False
    for key, outcome in zip(artifacts, fetched, strict=True):
        if isinstance(outcome, Exception):
            tally.given_up.append(f"fetch: {_short(outcome)}")
            continue
        tally.fetched += 1
        if contents(outcome) != contents(sources[key]):
            tally.violations.append(f"{uri} {key}: fetch delivered wrong bytes")
    _empty(uri)
    shutil.rmtree(folder)


def _look_up(
    uri: str, sources: Mapping[str, Path], outcomes: Sequence[tuple[str, Any]], folder: Path, tally: Tally
) -> dict[str, Artifact]:
    """The artifacts that are there, after each publish was held against them."""
    store = store_at(uri)
    there = {}
    for key, source in sources.items():
        try:
            artifact = find(store, STAGE, key)
            if artifact is None:
                artifact = _publish(uri, source, key)  # the one that gave up, run again
            there[key] = artifact
            if contents(fetch(store, artifact, folder / f"calm-{key}")) != contents(source):
                tally.violations.append(f"{uri} {key}: the store delivers other bytes than were published")
        except Exception as error:
            there.pop(key, None)
            tally.violations.append(f"{uri} {key}: published, but neither whole nor absent: {_short(error)}")
    for key, outcome in outcomes:
        if isinstance(outcome, Exception):
            tally.given_up.append(f"publish: {_short(outcome)}")
            continue
        tally.published += 1
        if key in there and there[key] != outcome:
            tally.violations.append(
                f"{uri} {key}: publish reported {outcome.digest}, the store has {there[key].digest}"
            )
    return there


def _publish(uri: str, source: Path, key: str) -> Artifact:
    return publish(
        store_at(uri), source, stage=STAGE, key=key, kind="model", config={}, inputs={}, chunk_bytes=CHUNK_BYTES
    )


def _fetch(uri: str, artifact: Artifact, cache: Path) -> Path:
    return fetch(store_at(uri), artifact, cache)


def _at_once(jobs: Sequence[Callable[[], T]]) -> list[T | Exception]:
    """Each job's result, or the exception that it raised."""

    def outcome(job: Callable[[], T]) -> T | Exception:
        try:
            return job()
        except Exception as error:
            return error

    with ThreadPoolExecutor(len(jobs) or 1) as pool:
        return list(pool.map(outcome, jobs))


def _make_folder(folder: Path, seed: str, num_files: int = NUM_SMALL_FILES, large_bytes: int = LARGE_BYTES) -> Path:
    lot = random.Random(seed)
    (folder / "sub").mkdir(parents=True)
    for number in range(num_files):
        (folder / "sub" / f"{number}.bin").write_bytes(lot.randbytes(lot.randrange(1, SMALL_BYTES)))
    (folder / "empty").touch()
    (folder / "model.bin").write_bytes(lot.randbytes(large_bytes))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Every file under `folder` by its name."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _empty(uri: str) -> None:
    store = store_at(uri)
    store.delete([file.name for file in store.files("artifacts/")])
    for write in list(store.unfinished("artifacts/")):
        store.abort(write)


def _loopback(port: int, tls: bool = False) -> str:
    return f"http{'s' * tls}://127.0.0.1:{port}"


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:300]
