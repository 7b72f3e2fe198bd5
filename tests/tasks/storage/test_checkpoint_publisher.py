"""Checkpoints on their way into the store while a stage trains."""

import contextlib
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tasks.storage import checkpoint_publisher
from tasks.storage.checkpoint_publisher import CheckpointPublisher
from tasks.storage.stored_checkpoints import Trail, stored_steps
from tasks.storage.stores import FileStore
from tests.tasks.storage.test_stored_checkpoints import write


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_publisher, "POLL_S", 0.02)
    monkeypatch.setattr(checkpoint_publisher, "PAUSE_AFTER_FAILURE_S", 0.02)


@pytest.fixture
def trail(tmp_path: Path) -> Trail:
    return Trail(FileStore(tmp_path / "store"), "ppo", "0" * 32, "version", tmp_path / "output")


class Gate:
    """Holds every upload's begin until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()
        begin = FileStore.begin

        def held(store: FileStore, *arguments: object) -> object:
            self.reached.set()
            self.opened.wait(10)
            return begin(store, *arguments)

        monkeypatch.setattr(FileStore, "begin", held)


def wait_for(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.01)


def interrupted(publisher: CheckpointPublisher, after: Callable[[], object]) -> None:
    """A stage that ends in Ctrl-C after something was done."""
    with contextlib.suppress(KeyboardInterrupt), publisher:
        after()
        raise KeyboardInterrupt


def test_each_newest_checkpoint_is_stored_and_the_one_before_goes(trail: Trail, tmp_path: Path) -> None:
    with CheckpointPublisher(trail, tmp_path / "publishing"):
        first = write(trail.output, 1)
        wait_for(lambda: stored_steps(trail) == [1])
        write(trail.output, 2)
        wait_for(lambda: stored_steps(trail) == [2, 1])  # the stage keeps both
        first.rename(tmp_path / "removed by the stage")
        write(trail.output, 3)
        wait_for(lambda: stored_steps(trail) == [3, 2])


def test_only_the_newest_waits_where_publishing_is_slower_than_training(
    trail: Trail, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    published: list[int] = []
    publish = checkpoint_publisher.publish_checkpoint
    monkeypatch.setattr(
        checkpoint_publisher, "publish_checkpoint", lambda *given: (published.append(given[2]), publish(*given))
    )
    write(trail.output, 1)
    with CheckpointPublisher(trail, tmp_path / "publishing"):
        gate.reached.wait(10)
        for step in (2, 3, 4):
            write(trail.output, step)
        gate.opened.set()
        wait_for(lambda: 4 in stored_steps(trail))
    assert published == [1, 4]


def test_what_the_newest_needs_is_stored_before_it_and_stays(trail: Trail, tmp_path: Path) -> None:
    write(trail.output, 1)
    write(trail.output, 2)
    write(trail.output, 3, needs=[1])
    with CheckpointPublisher(trail, tmp_path / "publishing"):
        wait_for(lambda: stored_steps(trail) == [3, 1])
        (trail.output / "checkpoints/step-2").rename(tmp_path / "gone")
        write(trail.output, 4, needs=[1])
        wait_for(lambda: 4 in stored_steps(trail))
        assert 1 in stored_steps(trail)


def test_after_an_error_the_last_one_is_stored(trail: Trail, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_publisher, "POLL_S", 60)
    interrupted(CheckpointPublisher(trail, tmp_path / "publishing"), lambda: write(trail.output, 7))
    assert stored_steps(trail) == [7]


def test_after_success_nothing_more_is_sent(trail: Trail, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_publisher, "POLL_S", 60)
    with CheckpointPublisher(trail, tmp_path / "publishing"):
        write(trail.output, 7)
    assert not list(trail.store.files(""))


def test_a_store_that_hangs_holds_up_the_end_for_a_bounded_time(
    trail: Trail, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint_publisher, "LAST_ONE_S", 0.3)
    gate = Gate(monkeypatch)
    write(trail.output, 1)
    publisher = CheckpointPublisher(trail, tmp_path / "publishing")
    started = time.monotonic()
    interrupted(publisher, lambda: gate.reached.wait(10))
    assert time.monotonic() - started < 3
    gate.opened.set()
    publisher._thread.join(10)
    assert stored_steps(trail) == []


def test_a_store_that_fails_is_tried_again_and_the_training_hears_nothing_of_it(
    trail: Trail, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    answers = iter([ConnectionError("no answer"), ConnectionError("no answer")])
    write_file = FileStore.write

    def sometimes(store: FileStore, name: str, data: bytes) -> None:
        if error := next(answers, None):
            raise error
        write_file(store, name, data)

    monkeypatch.setattr(FileStore, "write", sometimes)
    write(trail.output, 1)
    with CheckpointPublisher(trail, tmp_path / "publishing"):
        wait_for(lambda: stored_steps(trail) == [1])
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert said == ["ppo: a checkpoint was not published (no answer)"] * 2


def test_what_is_stored_already_is_not_sent_again_unless_it_is_damaged(
    trail: Trail, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(trail.output, 1)
    with CheckpointPublisher(trail, tmp_path / "publishing"):
        wait_for(lambda: stored_steps(trail) == [1])
    sent: list[int] = []
    monkeypatch.setattr(checkpoint_publisher, "publish_checkpoint", lambda *given: sent.append(given[2]))
    with CheckpointPublisher(trail, tmp_path / "publishing"):
        time.sleep(0.3)
    assert sent == []
    with CheckpointPublisher(trail, tmp_path / "publishing", distrusted={1}):
        wait_for(lambda: sent == [1])
