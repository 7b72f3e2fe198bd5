"""Reward models and certificate in their order; the stages themselves stand in for processes."""

from pathlib import Path
from typing import Any

import pytest

from flows import scoring
from flows.pipeline import Pipeline
from flows.scoring import reward_models
from tasks.artifacts import Artifact, store_at
from tasks.certification import FailedByCertificate
from tasks.runner import Workplace

HALVES = {"reward_model": {"half": "first"}, "second_reward_model": {"half": "second"}}


def artifact(name: str, kind: str = "reward_model") -> Artifact:
    return Artifact(uri=f"file:///store/{name}", kind=kind, digest=f"digest of {name}")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What is asked of each stage."""
    calls: list[tuple[Any, ...]] = []

    def stand_in(name: str, *given: Any) -> Artifact:
        calls.append((name, *given))
        return artifact(name)

    for name in ("reward_model", "second_reward_model"):
        monkeypatch.setattr(
            scoring.stages, name, lambda config, data, sft, place, name=name: stand_in(name, config.half)
        )
    monkeypatch.setattr(
        scoring.stages, "certify", lambda config, data, sft, first, second, place: stand_in("certify", first, second)
    )
    monkeypatch.setattr(scoring, "require_open", lambda certificate, place: calls.append(("open?", certificate)))
    return calls


def found(tmp_path: Path, existing: dict[str, Artifact] | None = None, **options: Any) -> dict[str, Artifact | None]:
    pipeline = {"prepare_data": {"sft": {"path": "sft.jsonl"}}, "sft": {"from_scratch": {}}} | options
    place = Workplace(store_at(f"file://{tmp_path}/store"), tmp_path, tmp_path)
    data, sft = artifact("data", "data"), artifact("sft", "model")
    return reward_models(Pipeline.model_validate(pipeline), place, existing or {}, data=data, sft=sft).by_name()


def test_the_certificate_comes_after_both_reward_models_and_is_opened(tmp_path: Path, asked: list[Any]) -> None:
    made = found(tmp_path, **HALVES)
    first, second, certificate = (artifact(name) for name in ("reward_model", "second_reward_model", "certify"))
    assert asked == [
        ("reward_model", "first"),
        ("second_reward_model", "second"),
        ("certify", first, second),
        ("open?", certificate),
    ]
    assert made == {"reward_model": first, "second_reward_model": second, "certificate": certificate}


def test_what_exists_is_not_trained_but_certified(tmp_path: Path, asked: list[Any]) -> None:
    mine = artifact("mine")
    found(tmp_path, {"reward_model": mine})
    assert asked == [("certify", mine, None), ("open?", artifact("certify"))]


def test_without_a_reward_model_or_where_ppos_result_exists_nothing_is_certified(
    tmp_path: Path, asked: list[Any]
) -> None:
    rule = {"rewards": [{"type": "function", "function": "gsm8k_reward_fn"}]}
    assert set(found(tmp_path, reward_model=None, ppo=rule, evaluate={"metrics": {"m": "a:b"}}).values()) == {None}
    assert found(tmp_path, {"ppo": artifact("ppo")})["certificate"] is None
    assert found(tmp_path, certify=None)["certificate"] is None
    assert [call[0] for call in asked] == ["reward_model", "reward_model"]


def test_a_refused_reward_model_stops_before_ppo(
    tmp_path: Path, asked: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(certificate: Artifact, place: Workplace) -> None:
        raise FailedByCertificate([], certificate.uri)

    monkeypatch.setattr(scoring, "require_open", refuse)
    with pytest.raises(FailedByCertificate, match="PPO was not started"):
        found(tmp_path)
