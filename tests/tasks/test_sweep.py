"""The command that shows, and deletes, what nobody needs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tasks import sweep
from tasks.artifacts import Store, store_at
from tasks.storage.manifest import describe_file
from tasks.sweep import readable
from tests.tasks.stores_of_runs import age, key, leave_attempt, make, names, run_of


@pytest.fixture
def uri(tmp_path: Path) -> str:
    """A store with an artifact of a run, one of no run, and an attempt that was interrupted, all old."""
    store = store_at(f"file://{tmp_path}/store")
    run_of(store, "p", "1", [make(store, tmp_path, key(1))])
    make(store, tmp_path, key(2))
    leave_attempt(store, key(3))
    age(store, "artifacts/", days=40)
    return store.uri


def test_it_shows_what_why_and_how_much_and_deletes_nothing(uri: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = names(store_at(uri))
    assert sweep.main(["--store", uri]) == 0
    out = capsys.readouterr().out
    assert f"an attempt that was interrupted: it has no manifest: 1 keys, 60 B\n  {key(3)}  2 files, 60 B" in out
    assert "no kept run, champion or kept artifact needs it: 1 keys, " in out
    assert "could be deleted; --delete does it" in out
    assert str(key(1)) not in out
    assert names(store_at(uri)) == before


def test_it_deletes_when_told_to_and_then_there_is_nothing_more(uri: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep.main(["--store", uri, "--delete"]) == 0
    assert {name.rsplit("/", 2)[0] for name in names(store_at(uri), "artifacts/")} >= {f"artifacts/{key(1)}"}
    assert not names(store_at(uri), f"artifacts/{key(2)}") + names(store_at(uri), f"artifacts/{key(3)}")
    assert sweep.main(["--store", uri, "--delete"]) == 0
    assert capsys.readouterr().out.endswith("Nothing to delete: all of it is needed, or young.\n")


@pytest.mark.parametrize(
    ("options", "wasted"),
    [
        (["--keep-days", "50"], [3]),
        (["--keep-days", "50", "--grace-hours", "1200"], []),
        (["--keep-days", "0", "--grace-hours", "0", "--keep-runs", "0"], [1, 2, 3]),
        (["--keep-days", "0", "--grace-hours", "0", "--keep-runs", "1"], [2, 3]),
    ],
)
def test_each_option_changes_what_is_kept(
    uri: str, options: list[str], wasted: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep.main(["--store", uri, *options]) == 0
    out = capsys.readouterr().out
    assert [number for number in (1, 2, 3) if str(key(number)) in out] == wasted


def test_a_store_that_is_none_is_refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert sweep.main(["--store", "nowhere"]) == 2
    assert "Give s3://bucket/prefix" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        sweep.main(["--store", "file:///tmp", "--keep-days", "-1"])


def test_the_store_may_come_from_the_environment(uri: str) -> None:
    command = [sys.executable, "-m", "tasks.sweep"]
    environment = {**os.environ, "ALIGNMENT_STORE": uri}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert str(key(3)) in done.stdout
    environment.pop("ALIGNMENT_STORE")
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, "set ALIGNMENT_STORE" in done.stderr) == (2, True)


@pytest.mark.parametrize(("given", "seen"), [("1200", "300.0"), ("20", "20.0"), (None, "300.0")])
def test_a_request_of_a_sweep_is_given_up_before_the_sweep_is_taken_for_dead(
    uri: str, monkeypatch: pytest.MonkeyPatch, given: str | None, seen: str
) -> None:
    deadlines: list[str] = []
    monkeypatch.delenv("ALIGNMENT_S3_DEADLINE_S", raising=False)
    if given:
        monkeypatch.setenv("ALIGNMENT_S3_DEADLINE_S", given)

    def opened(address: str) -> Store:
        deadlines.append(os.environ["ALIGNMENT_S3_DEADLINE_S"])
        return store_at(address)

    monkeypatch.setattr(sweep, "store_at", opened)
    assert sweep.main(["--store", uri]) == 0
    assert deadlines == [seen]
    assert os.environ.get("ALIGNMENT_S3_DEADLINE_S") == given


def test_sizes_are_readable() -> None:
    assert [readable(size) for size in (0, 1023, 1536, 5 * 2**30)] == ["0 B", "1023 B", "1.5 KiB", "5.0 GiB"]


def test_many_objects_and_open_uploads_go_from_a_real_server(s3_uri: str, tmp_path: Path) -> None:
    store = store_at(s3_uri)
    for number in range(100):
        store.write(f"checkpoints/{key(number % 20)}/step-1/{number}", b"x")
    (tmp_path / "big").write_bytes(os.urandom(11 * 2**20))
    entry = describe_file(tmp_path / "big", 5 * 2**20)
    assert store.begin(f"artifacts/{key(1)}/{'f' * 16}/big", entry, 5 * 2**20)
    nothing_kept = ["--keep-days", "0", "--grace-hours", "0", "--keep-runs", "0", "--delete"]
    assert sweep.main(["--store", s3_uri, *nothing_kept]) == 0
    assert names(store) == []
    assert list(store.unfinished("")) == []
