"""Evaluation, gate, export and the champion's pointer in their order; the stages themselves stand in for processes."""

from pathlib import Path
from typing import Any

import pytest

from flows import release
from flows.pipeline import Pipeline
from flows.recording import PIPELINE_VARIABLE
from tasks import champion
from tasks.artifacts import Artifact, store_at
from tasks.champion import read_pointer
from tasks.gate import GateConfig
from tasks.release import FailedByGate
from tasks.rules import Verdict
from tasks.runner import Workplace

OPTIONS = Pipeline.model_validate(
    {"prepare_data": {"sft": {"path": "sft.jsonl"}}, "sft": {"from_scratch": {}}, "evaluate": {"metrics": {"m": "a:b"}}}
)


def artifact(name: str, kind: str = "model") -> Artifact:
    return Artifact(uri=f"file:///store/{name}", kind=kind, digest=f"digest of {name}")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workplace:
    monkeypatch.setenv(PIPELINE_VARIABLE, "mine")
    return Workplace(store_at(f"file://{tmp_path}/store"), tmp_path, tmp_path)


class Stages:
    """What is asked of the stages; `meanwhile` happens during each evaluation."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, refuses: bool = False) -> None:
        self.rivals: list[str | None] = []
        self.exported: list[str] = []
        self.meanwhile: list[Any] = []
        self.refuses = refuses
        for module, name in ((release.stages, "evaluate"), (release.stages, "export")):
            monkeypatch.setattr(module, name, getattr(self, name))
        for name in ("gate", "crown"):
            monkeypatch.setattr(release.release, name, getattr(self, name))

    def evaluate(self, config: Any, data: Any, sft: Any, model: Artifact, others: Any, place: Workplace) -> Artifact:
        rival = others["champion"]
        self.rivals.append(rival and rival.uri)
        if self.meanwhile:
            self.meanwhile.pop(0)()
        return artifact(f"evaluation of {model.uri} against {rival and rival.uri}", "evaluation")

    def gate(self, config: GateConfig, metrics: Any, evaluation: Artifact, rival: Any, place: Any) -> list[Verdict]:
        verdict = "failed" if self.refuses else "passed"
        verdicts = [Verdict(measures="tax", demand="≤ 0", measured=1.0, verdict=verdict)]
        if self.refuses:
            raise FailedByGate(verdicts, rival and rival.uri)
        return verdicts

    def export(self, config: Any, model: Artifact, evaluation: Artifact, parents: Any, place: Any) -> Artifact:
        self.exported.append(model.uri)
        return artifact(f"export by {evaluation.uri}", "export")

    def crown(
        self, pipeline: str, export: Artifact, model: Artifact, rival: Any, evaluation: Any, place: Workplace
    ) -> bool:
        try:
            champion.move(place.store, pipeline, export=export, model=model, rival=rival, run=model.uri, figures={})
        except champion.ChampionChanged:
            return False
        return True


def released(place: Workplace, name: str) -> release.Release:
    return release.release_model(
        OPTIONS, place, data=artifact("data", "data"), model=artifact(name), sft=artifact("sft"), base=None, parents={}
    )


def test_the_next_model_is_compared_with_the_last_and_a_repeated_run_as_the_first_time(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = Stages(monkeypatch)
    first = released(place, "a")
    second = released(place, "b")
    again = released(place, "b")
    assert stages.rivals == [None, first.export.uri, first.export.uri]
    assert (again.evaluation, again.export) == (second.evaluation, second.export)
    pointer = read_pointer(place.store, "mine")
    assert pointer is not None
    assert (pointer.uri, len(pointer.history)) == (second.export.uri, 1)


def test_a_model_that_the_gate_refuses_is_not_exported_and_the_champion_stays(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    Stages(monkeypatch)
    first = released(place, "a")
    stages = Stages(monkeypatch, refuses=True)
    with pytest.raises(FailedByGate, match=r"1 of 1 rules .*/export by .* stays the champion\.\n  failed: tax is 1"):
        released(place, "b")
    pointer = read_pointer(place.store, "mine")
    assert stages.exported == []
    assert pointer is not None
    assert pointer.uri == first.export.uri


def test_a_run_that_is_overtaken_proves_itself_against_the_winner(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = Stages(monkeypatch)
    stages.meanwhile = [lambda: released(place, "winner")]
    release_ = released(place, "slower")
    assert stages.rivals[0] is None
    assert stages.rivals[-1] is not None
    assert "winner" in stages.rivals[-1]
    assert release_.rival is not None
    assert release_.rival.uri == stages.rivals[-1]
    pointer = read_pointer(place.store, "mine")
    assert pointer is not None
    assert [pointer.run, *(one.run for one in pointer.history)] == ["file:///store/slower", "file:///store/winner"]


def test_a_champion_that_changes_again_and_again_ends_the_run(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = Stages(monkeypatch)
    stages.meanwhile = [
        lambda: released(place, "one"),
        lambda: None,
        lambda: released(place, "two"),
        lambda: None,
        lambda: released(place, "three"),
    ]
    with pytest.raises(RuntimeError, match="changed 3 times"):
        released(place, "slower")
