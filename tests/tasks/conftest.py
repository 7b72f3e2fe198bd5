import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tasks.ppo import tiny


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of data, policy, reward_model and reward_adapter, made once."""
    root = tmp_path_factory.mktemp("world")
    writers: dict[str, Callable[[Path], Path]] = {
        "data": tiny.write_data,
        "policy": tiny.write_policy,
        "reward_model": tiny.write_reward_model,
        "reward_adapter": tiny.write_reward_adapter,
    }
    return {name: write(root / name) for name, write in writers.items()}


@pytest.fixture
def quick_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("claims", "sweeper"):
        monkeypatch.setattr(f"tasks.retention.{name}.POLL_S", 0.01)
    monkeypatch.setattr("os.fsync", lambda descriptor: None)  # no power is cut here
    monkeypatch.setattr("tasks.artifacts.library_versions", dict)


@pytest.fixture
def waiting(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set once a run waits for a sweep."""
    event = threading.Event()

    class Watched:
        monotonic = staticmethod(time.monotonic)

        @staticmethod
        def sleep(seconds: float) -> None:
            event.set()
            time.sleep(seconds)

    monkeypatch.setattr("tasks.retention.claims.time", Watched)
    return event
