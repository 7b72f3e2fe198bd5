"""Experiment trackers by name."""

import json
from pathlib import Path
from typing import Any

import pytest
from accelerate.utils import LoggerType

from tasks import trackers
from tasks.config import Config, SamplingConfig
from tasks.errors import InputError
from tasks.processes import Processes
from tasks.trackers import check_trackers, start_trackers


class Options(Config):
    """Options of every shape that a stage has."""

    learning_rate: float = 1e-5
    seed: int = 3
    score_norm: bool = True
    lr_schedule: str = "linear"
    target_kl: float | None = None
    trackers: tuple[str, ...] = ("tensorboard",)
    sampling: SamplingConfig = SamplingConfig(top_k=7)


def test_an_unknown_tracker_is_refused_naming_those_there_are() -> None:
    with pytest.raises(InputError, match=r"trackers: 'tensorbord' is none of .*mlflow.*tensorboard.*wandb"):
        check_trackers(["tensorbord"])


def test_a_tracker_whose_package_is_missing_is_refused_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "get_available_trackers", lambda: [LoggerType.TENSORBOARD])
    check_trackers(["tensorboard"])
    with pytest.raises(InputError, match="package of wandb is not installed"):
        check_trackers(["tensorboard", "wandb"])


def test_no_trackers_and_an_installed_one_are_fine() -> None:
    check_trackers([])
    pytest.importorskip("tensorboard")
    check_trackers(["tensorboard"])


def test_without_trackers_nothing_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    accelerator = Processes().accelerator
    monkeypatch.setattr(accelerator, "init_trackers", lambda *_, **__: pytest.fail("a tracker was started"))
    start_trackers(accelerator, "ppo", Options())


def test_tensorboard_gets_the_metrics_and_the_options(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    accelerator = Processes(["tensorboard"], tmp_path).accelerator
    start_trackers(accelerator, "ppo", Options())
    accelerator.log({"score": 1.5}, step=1)
    accelerator.log({"score": 2.5}, step=2)
    accelerator.end_training()
    assert read_scalars(tmp_path / "ppo", "score") == [(1, 1.5), (2, 2.5)]
    assert read_options(tmp_path) == {
        "learning_rate": 1e-5,
        "seed": 3,
        "score_norm": True,
        "lr_schedule": "linear",
        "target_kl": "null",
        "trackers": '["tensorboard"]',
        "sampling": json.dumps(SamplingConfig(top_k=7).model_dump()),
    }


def read_scalars(folder: Path, name: str) -> list[tuple[int, float]]:
    """Step and value of each point in the event file."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def read_options(folder: Path) -> dict[str, Any]:
    """The options in the one hparams.yml."""
    import yaml

    (path,) = folder.rglob("hparams.yml")
    return yaml.safe_load(path.read_text())
