"""The runner, with a stub stage as a real process and a folder as the store."""

import errno
import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from tasks.artifacts import Artifact, fetch, find, lineage_of, read_files, store_at
from tasks.errors import InputError
from tasks.runner import Outcome, Stage, StageCancelled, StageFailed, Watch, Workplace, check_inputs, run_stage
from tasks.storage.cache import make_room
from tasks.storage.stores import FileStore
from tests.stub_stage import StubConfig

pytestmark = pytest.mark.slow

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


def test_what_an_artifact_took_stands_in_its_manifest(place: Workplace) -> None:
    started = time.monotonic()
    artifact = run(place, StubConfig()).artifact
    cost = lineage_of(place.store, artifact)["cost"]
    assert 0 < cost["seconds"] < time.monotonic() - started
    assert 5e6 < cost["peak_rss_bytes"] < 1e9


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


def test_inputs_stay_in_the_cache_while_the_stage_runs(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGNMENT_CACHE_GIB", "0")
    first = run(place, StubConfig(text="one, ")).artifact
    cache = place.folder / "cache"
    seen: list[bool] = []

    def evict_all(record: object) -> None:
        make_room(cache, 0)
        seen.append((cache / first.digest).exists())

    run(place, StubConfig(text="two"), {"before": first}, watch=Watch(evict_all, lambda: False))
    assert seen == [True] * 3
    make_room(cache, 0)
    assert not (cache / first.digest).exists()


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
    assert lineage["config"] == StubConfig(text="one").model_dump()
    assert (Path(folder) / "tree.txt").read_text().startswith(f"└─ before (text) {first.artifact.digest[:12]}")


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

    monkeypatch.setattr("tasks.runner.fetched", full)
    before = Artifact(uri="file:///nowhere", kind="text", digest="0" * 64)
    with pytest.raises(InputError, match=r"^The disk under .* is full"):
        run(place, StubConfig(), {"before": before})


def test_a_failure_shows_the_log_and_the_command_to_run_again(place: Workplace) -> None:
    with pytest.raises(StageFailed, match=r"status 1(.|\n)*it broke(.|\n)*-m tests.stub_stage --config"):
        run(place, StubConfig(behaviour="fail"))


def test_cancelling_ends_the_stages_processes(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.launch.CANCEL_CHECK_S", 0.3)
    started = threading.Event()
    with pytest.raises(StageCancelled):
        run(place, StubConfig(behaviour="wait"), watch=Watch(lambda record: started.set(), started.is_set))
    output = str(place.folder)
    assert not [p for p in psutil.process_iter(["cmdline"]) if any(output in word for word in p.info["cmdline"] or [])]


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
    [command] = [line.split() for line in str(failure.value).splitlines() if " --config " in line]
    config = json.loads(Path(command[command.index("--config") + 1]).read_text())
    assert StubConfig(**config) == StubConfig(behaviour="fail", text="as given")


def test_an_attempt_on_an_empty_machine_goes_on_from_the_last_checkpoint_in_the_store(place: Workplace) -> None:
    config = StubConfig(behaviour="train")
    with pytest.raises(KeyboardInterrupt):
        run(place, config, watch=Watch(lambda record: None, interrupt_at(place, 4)))
    elsewhere = replace(place, folder=place.folder / "elsewhere")
    outcome = run(elsewhere, config)
    started = fetch(place.store, outcome.artifact, elsewhere.folder / "cache") / "started.json"
    assert started.read_text() == "4"
    assert not list(place.store.files("checkpoints/"))


def interrupt_at(place: Workplace, step: int) -> Callable[[], bool]:
    """Gives the question whether to stop: it is answered by Ctrl-C once the stage wrote the checkpoint of `step`."""

    def asked() -> bool:
        if list(place.folder.glob(f"stub/*/output/checkpoints/step-{step}")):
            raise KeyboardInterrupt
        return False

    return asked


@pytest.fixture(autouse=True)
def _quick_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.launch.CANCEL_CHECK_S", 0.2)


def test_what_ran_out_of_memory_runs_again_with_half_until_it_fits(
    place: Workplace, caplog: pytest.LogCaptureFixture
) -> None:
    hungry = run(place, StubConfig(size=8, fits=2))
    report = json.loads((fetch(place.store, hungry.artifact, place.folder / "cache") / "report.json").read_text())
    assert report == {"reduced_for_memory": "size 8 -> 2"}
    assert [record.getMessage().partition(".")[0] for record in caplog.records if record.levelname == "WARNING"] == [
        "stub: again with size 8 -> 4",
        "stub: again with size 4 -> 2",
    ]
    assert find(place.store, "stub", hungry.artifact.uri.rpartition("/")[2]) == hungry.artifact
    assert run(place, StubConfig(size=8, fits=2)).already_done


def test_what_never_fits_ends_with_what_to_do(place: Workplace) -> None:
    with pytest.raises(InputError, match=r"^stub: The memory does not suffice \(MemoryError\)\. Lower the stage's"):
        run(place, StubConfig(size=4, fits=0))


def test_the_next_attempt_here_starts_with_what_was_reduced(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.runner.MOST_REDUCTIONS", 1)
    with pytest.raises(InputError, match="The memory does not suffice"):
        run(place, StubConfig(size=8, fits=2))
    assert not run(place, StubConfig(size=8, fits=2)).already_done


def test_without_want_of_memory_nothing_is_reduced(place: Workplace) -> None:
    outcome = run(place, StubConfig())
    assert read_files(place.store, outcome.artifact, "report.json") == {"report.json": b"{}"}


@pytest.mark.parametrize("behaviour", ["fail", "refuse", "wait"])
def test_the_whole_log_of_an_attempt_without_success_is_in_the_store(place: Workplace, behaviour: str) -> None:
    heard: list[tuple[str, str]] = []
    watch = Watch(lambda record: None, lambda: behaviour == "wait", lambda *said: heard.append(said))
    with pytest.raises((StageFailed, StageCancelled, InputError)) as failure:
        run(place, StubConfig(behaviour=behaviour), watch=watch)
    [(address, tail)] = heard
    name = address.removeprefix(f"{place.store.uri}/")
    [key] = [folder.name for folder in (place.folder / "stub").iterdir() if folder.is_dir()]
    assert name.startswith(f"logs/stub/{key}/20")
    log = place.store.read(name)
    assert log == (place.folder / "stub" / key / "output" / "log.txt").read_bytes()
    assert tail == log.decode().rstrip("\n")
    assert behaviour == "refuse" or address in str(failure.value)


def test_a_store_that_does_not_answer_does_not_hold_up_the_failure(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.stage_log.PATIENCE_S", 0.2)
    write = FileStore.write
    monkeypatch.setattr(
        FileStore, "write", lambda *given: time.sleep(5) if given[1].startswith("logs/") else write(*given)
    )
    with pytest.raises(StageFailed, match=r"--- the whole log\n.*/output/log\.txt"):
        run(place, StubConfig(behaviour="fail"))
