"""What the chain gives to its last stages; the stages themselves stand in for processes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from flows import alignment
from flows.pipeline import Pipeline
from tasks.artifacts import Artifact, store_at
from tasks.runner import Workplace

KINDS = {
    "prepare_data": "data",
    "sft": "adapter",
    "merge_lora": "model",
    "reward_model": "reward_adapter",
    "ppo": "actor_critic_adapter",
    "remove_value_head": "adapter",
}


class Released(Exception):
    """The chain came to its end."""


def parents_of_release(monkeypatch: pytest.MonkeyPatch, folder: Path, **export: Any) -> Mapping[str, Artifact]:
    """What the release is told of where its model comes from."""
    made: list[str] = []
    parents: dict[str, Artifact] = {}

    def stage(name: str) -> Any:
        def run(*_: Any) -> Artifact:
            made.append(name)
            return Artifact(uri=f"{name}-{made.count(name)}", kind=KINDS[name], digest=name)

        return run

    def release(*_: Any, **told: Any) -> None:
        parents.update(told["parents"])
        raise Released

    for name in KINDS:
        monkeypatch.setattr(alignment.stages, name, stage(name))
    monkeypatch.setattr(alignment, "release_model", release)
    data = {"sft": {"path": "sft.jsonl"}}
    options = Pipeline.model_validate(
        {"prepare_data": data, "sft": {"from_scratch": {}}, "certify": None, "export": export}
    )
    with pytest.raises(Released):
        alignment.run_chain(options, Workplace(store_at(f"file://{folder}"), folder, folder))
    return parents


def test_the_adapter_and_its_base_go_to_the_export_where_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    parents = parents_of_release(monkeypatch, tmp_path, adapter={"base": "org/sft"})

    assert parents["adapter"].uri == "remove_value_head-1"
    assert parents["adapter_base"].uri == "merge_lora-1"  # the SFT model: the tuned one is merge_lora-2


def test_without_that_option_they_do_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    parents = parents_of_release(monkeypatch, tmp_path)
    assert {name for name, artifact in parents.items() if artifact} == {"data", "sft", "reward_model", "ppo"}
