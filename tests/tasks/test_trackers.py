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
from tasks.trackers import Reporter, check_trackers
from tasks.tracking import read_metrics


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


def report(processes: Processes, folder: Path) -> None:
    tell = Reporter(processes, Options(), folder, first=0, last=2, shown=("score", "kl"))
    tell(1, {"score": 1.5, "clip_fraction": 0.1})
    tell(2, {"score": 2.5, "kl": 0.25})


def test_metrics_go_to_the_log_and_a_few_to_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    processes = Processes()
    assert processes.accelerator.trackers == []
    report(processes, tmp_path)
    assert [record["score"] for record in read_metrics(tmp_path)] == [1.5, 2.5]
    assert capsys.readouterr().out == "iteration 1/2  score 1.5\niteration 2/2  score 2.5  kl 0.25\n"


def test_only_the_main_process_writes_the_log(tmp_path: Path) -> None:
    processes = Processes()
    processes.is_main = False
    report(processes, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_tensorboard_gets_the_metrics_and_the_options(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    processes = Processes(["tensorboard"], tmp_path)
    report(processes, tmp_path)
    processes.leave()
    assert read_scalars(tmp_path / "alignment", "score") == [(1, 1.5), (2, 2.5)]
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
