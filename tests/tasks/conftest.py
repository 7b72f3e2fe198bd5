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
