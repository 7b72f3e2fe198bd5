"""The runner, with a stub stage as a real process and a folder as the store."""

import errno
import json
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import psutil
import pytest

from tasks.artifacts import Artifact, fetch, store_at
from tasks.errors import InputError
from tasks.runner import Outcome, Stage, StageCancelled, StageFailed, Watch, Workplace, check_inputs, run_stage
from tests.stub_stage import StubConfig

STUB = Stage("stub", "tests.stub_stage", needs={}, may_have={"before": ("text",)})
NOT_WATCHED = Watch(on_metrics=lambda record: None, cancelled=lambda: False)


@pytest.fixture
def place(tmp_path: Path) -> Workplace:
    return Workplace(store_at(f"file://{tmp_path}/store"), tmp_path / "work", tmp_path / "accelerate.yaml")


def run(
    place: Workplace, config: StubConfig, inputs: Mapping[str, Artifact] | None = None, watch: Watch = NOT_WATCHED
) -> Outcome:
    return run_stage(STUB, config, inputs or {}, "text", place, watch)


def text_of(place: Workplace, outcome: Outcome) -> str:
    return (fetch(place.store, outcome.artifact, place.folder / "cache") / "text").read_text()


def test_a_stage_gets_its_inputs_and_its_output_is_published(place: Workplace) -> None:
    first = run(place, StubConfig(text="one, "))
    second = run(place, StubConfig(text="two"), {"before": first.artifact})
    assert text_of(place, second) == "one, two"
    assert second.artifact.made_from == {"before": first.artifact.digest}


def test_the_same_work_is_not_done_twice(place: Workplace) -> None:
    first = run(place, StubConfig())
    second = run(place, StubConfig())
    assert (first.already_done, second.already_done) == (False, True)
    assert second.artifact == first.artifact
    assert not run(place, StubConfig(text="other")).already_done


def test_checkpoints_are_not_published_and_the_scratch_folder_is_emptied(place: Workplace) -> None:
    outcome = run(place, StubConfig())
    files = {path.name for path in fetch(place.store, outcome.artifact, place.folder / "cache").iterdir()}
    assert files == {"text", "report.json", "metrics.jsonl", "log.txt"}
    assert [path.suffix for path in (place.folder / "stub").iterdir()] == [".lock"]


def test_metrics_are_forwarded_in_order(place: Workplace) -> None:
    records: list[Mapping[str, float]] = []
    run(place, StubConfig(), watch=Watch(records.append, lambda: False))
    assert [(record["step"], record["loss"]) for record in records] == [(1, 1.0), (2, 0.5), (3, 1 / 3)]


def test_an_input_of_the_wrong_kind_is_refused_before_launch(place: Workplace) -> None:
    reward_model = Artifact(uri="file:///nowhere", kind="reward_model", digest="0" * 64)
    with pytest.raises(InputError, match="input 'before' must be of kind text, but file:///nowhere is of kind reward"):
        run(place, StubConfig(), {"before": reward_model})
    assert not place.folder.exists()


def test_a_name_with_a_star_stands_for_all_inputs_that_begin_so(place: Workplace) -> None:
    stage = Stage("stub", "tests.stub_stage", needs={}, may_have={"before*": ("text",)})
    text = Artifact(uri="file:///nowhere", kind="text", digest="0" * 64)
    check_inputs(stage, {"before": text, "before_test": text, "before.one": text})
    with pytest.raises(InputError, match=r"stub has no input 'after'; it takes before\*"):
        check_inputs(stage, {"after": text})
    model = Artifact(uri="file:///nowhere", kind="model", digest="0" * 64)
    with pytest.raises(InputError, match=r"input 'before\.one' must be of kind text, but .* is of kind model"):
        check_inputs(stage, {"before.one": model})


def test_a_stage_that_wants_lineage_is_told_what_its_inputs_are(place: Workplace) -> None:
    first = run(place, StubConfig(text="one"))
    curious = Stage("curious", "tests.stub_stage", needs={"before": ("text",)}, wants_lineage=True)
    with pytest.raises(StageFailed) as failure:
        run_stage(curious, StubConfig(behaviour="fail"), {"before": first.artifact}, "text", place, NOT_WATCHED)
    [folder] = [word.removeprefix("lineage=") for word in str(failure.value).split() if word.startswith("lineage=")]
    [(name, lineage)] = json.loads((Path(folder) / "lineage.json").read_text()).items()
    assert (name, lineage["uri"], lineage["stage"]) == ("before", first.artifact.uri, "stub")
    assert lineage["config"] == {"behaviour": "work", "text": "one"}


def test_a_missing_input_is_refused_before_launch(place: Workplace) -> None:
    needy = Stage("needy", "tests.stub_stage", needs={"before": ("text",)})
    with pytest.raises(InputError, match="needy needs the input 'before', of kind text; there is none"):
        run_stage(needy, StubConfig(), {}, "text", place, NOT_WATCHED)


def test_what_the_stage_refuses_arrives_as_its_message(place: Workplace) -> None:
    with pytest.raises(InputError, match=r"^stub: expected sugar, got salt$"):
        run(place, StubConfig(behaviour="refuse"))


def test_a_disk_too_full_for_the_message_is_still_named(place: Workplace) -> None:
    with pytest.raises(InputError, match=r"^stub: It could not write why: the disk under .* is full"):
        run(place, StubConfig(behaviour="refuse in vain"))


def test_a_disk_that_is_full_before_launch_is_named(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tasks.runner.fetch", full)
    before = Artifact(uri="file:///nowhere", kind="text", digest="0" * 64)
    with pytest.raises(InputError, match=r"^The disk under .* is full"):
        run(place, StubConfig(), {"before": before})


def test_a_failure_shows_the_log_and_the_command_to_run_again(place: Workplace) -> None:
    with pytest.raises(StageFailed, match=r"status 1(.|\n)*it broke(.|\n)*-m tests.stub_stage --config"):
        run(place, StubConfig(behaviour="fail"))


def test_cancelling_ends_the_stages_processes(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.runner.CANCEL_CHECK_S", 0.3)
    started = threading.Event()
    with pytest.raises(StageCancelled):
        run(place, StubConfig(behaviour="wait"), watch=Watch(lambda record: started.set(), started.is_set))
    output = str(place.folder)
    assert not [p for p in psutil.process_iter(["cmdline"]) if any(output in word for word in p.info["cmdline"] or [])]


def test_the_stage_sees_neither_prefects_settings_nor_the_network_of_hubs(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_KEY", "secret")
    from tasks.runner import _environment

    environment = _environment()
    assert "PREFECT_API_KEY" not in environment
    assert environment["HF_HUB_OFFLINE"] == "1"
    assert environment["PATH"] == os.environ["PATH"]


def test_two_runs_of_the_same_stage_at_once_compute_it_once(place: Workplace) -> None:
    outcomes: list[Outcome] = []
    threads = [threading.Thread(target=lambda: outcomes.append(run(place, StubConfig()))) for _ in range(3)]
    for thread in threads:
        thread.start()
        time.sleep(0.05)
    for thread in threads:
        thread.join()
    assert sorted(outcome.already_done for outcome in outcomes) == [False, True, True]


def test_the_config_is_the_file_that_the_stage_reads(place: Workplace) -> None:
    with pytest.raises(StageFailed) as failure:
        run(place, StubConfig(behaviour="fail", text="as given"))
    command = str(failure.value).splitlines()[-1].split()
    config = json.loads(Path(command[command.index("--config") + 1]).read_text())
    assert config == {"behaviour": "fail", "text": "as given"}
