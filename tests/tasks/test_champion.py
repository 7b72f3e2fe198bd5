"""The pointer to the champion: when it moves, and that it is never lost however many runs move it at once."""

import json
import threading
from collections.abc import Callable
from typing import Any

import pytest

from tasks.artifacts import Artifact, store_at
from tasks.champion import ChampionChanged, move, pointer_name, read_pointer, rival_of
from tasks.errors import InputError
from tasks.storage.stores import Store

FIGURES = {"win_rate": 0.8, "judge": "score", "tax": float("nan"), "samples": []}


def artifact(name: str) -> Artifact:
    return Artifact(uri=f"file:///store/{name}", kind="export", digest=f"digest of {name}")


def crown(store: Store, name: str, rival: Any, card: str = "") -> bool:
    return move(
        store,
        "demo",
        export=artifact(f"export-{name}{card}"),
        model=artifact(f"model-{name}"),
        rival=rival,
        run=f"run-{name}",
        figures=FIGURES,
    )


@pytest.fixture
def store(store_uri: str) -> Store:
    return store_at(store_uri)


def test_the_first_export_becomes_the_champion_and_the_next_takes_its_place(store: Store) -> None:
    assert read_pointer(store, "demo") is None
    assert crown(store, "a", None)
    assert crown(store, "b", read_pointer(store, "demo"))
    content = json.loads(store.read("champions/demo.json") or b"")
    assert (content["uri"], content["digest"]) == ("file:///store/export-b", "digest of export-b")
    assert (content["run"], content["pipeline"], content["figures"]) == ("run-b", "demo", {"win_rate": 0.8})
    assert [one["run"] for one in content["history"]] == ["run-a"]
    assert [stored.name for top in ("champions", "locks") for stored in store.files(f"{top}/")] == [
        "champions/demo.json"
    ]


def test_the_pointer_moves_only_from_the_champion_that_was_compared_with(store: Store) -> None:
    crown(store, "a", None)
    rival = read_pointer(store, "demo")
    crown(store, "b", rival)
    before = store.read("champions/demo.json")
    with pytest.raises(ChampionChanged, match=r"export-a of run run-a was the champion .* now it is .*export-b"):
        crown(store, "c", rival)
    with pytest.raises(ChampionChanged, match="nobody was the champion"):
        crown(store, "c", None)
    assert store.read("champions/demo.json") == before


def test_a_run_that_is_repeated_compares_itself_as_before_and_changes_nothing(store: Store) -> None:
    crown(store, "a", None)
    crown(store, "b", read_pointer(store, "demo"))
    before = store.read("champions/demo.json")
    rival = rival_of(read_pointer(store, "demo"), artifact("model-b"))
    assert rival is not None
    assert rival.run == "run-a"
    assert not crown(store, "b", rival)
    assert store.read("champions/demo.json") == before


def test_the_first_champions_own_run_has_nobody_to_beat(store: Store) -> None:
    crown(store, "a", None)
    assert rival_of(read_pointer(store, "demo"), artifact("model-a")) is None
    assert rival_of(None, artifact("model-a")) is None


def test_a_new_export_of_the_champions_model_takes_its_place_without_a_change_of_champions(store: Store) -> None:
    crown(store, "a", None)
    crown(store, "b", read_pointer(store, "demo"))
    assert crown(store, "b", read_pointer(store, "demo"), card="-with-another-card")
    pointer = read_pointer(store, "demo")
    assert pointer is not None
    assert pointer.uri == "file:///store/export-b-with-another-card"
    assert [one.run for one in pointer.history] == ["run-a"]


def test_each_pipeline_has_a_champion_of_its_own(store: Store) -> None:
    crown(store, "a", None)
    assert read_pointer(store, "nightly") is None


def test_a_damaged_pointer_is_refused_with_what_to_do(tmp_path: Any) -> None:
    store = store_at(f"file://{tmp_path}")
    for content in (b"{", b'{"uri": "x"}', b"[]"):
        store.write("champions/demo.json", content)
        with pytest.raises(InputError, match=r"champions/demo.json is no pointer(.|\n)*delete it"):
            read_pointer(store, "demo")


@pytest.mark.parametrize("name", ["", "../up", "a/b", "ä", " a"])
def test_a_name_that_cannot_stand_in_an_address_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="names the champion's pointer"):
        pointer_name(name)


def at_once(run: Callable[[str], None], names: str) -> None:
    """Call `run` with each name in a thread of its own, to their ends."""
    threads = [threading.Thread(target=run, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_of_many_runs_at_once_each_either_wins_or_is_told_and_no_champion_is_lost(store_uri: str) -> None:
    """Each thread is a run that tries once against the champion it saw; those that won stand in the history."""
    outcomes: dict[str, bool] = {}
    start = threading.Barrier(6)

    def run(name: str) -> None:
        store = store_at(store_uri)
        rival = read_pointer(store, "demo")
        start.wait()
        try:
            outcomes[name] = crown(store, name, rival)
        except ChampionChanged:
            outcomes[name] = False

    at_once(run, "abcdef")
    pointer = read_pointer(store_at(store_uri), "demo")
    assert pointer is not None
    assert sorted(outcomes.values()) == [False] * 5 + [True]
    assert [name for name, won in outcomes.items() if won] == [pointer.run.removeprefix("run-")]
    assert pointer.history == []


def test_runs_that_try_again_all_become_champion_one_after_the_other(store_uri: str) -> None:
    def run(name: str) -> None:
        store = store_at(store_uri)
        while True:
            try:
                crown(store, name, read_pointer(store, "demo"))
            except ChampionChanged:
                continue
            return

    at_once(run, "abcd")
    pointer = read_pointer(store_at(store_uri), "demo")
    assert pointer is not None
    assert sorted([pointer.run, *(one.run for one in pointer.history)]) == [f"run-{name}" for name in "abcd"]
