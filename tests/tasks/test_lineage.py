"""Trees of what artifacts were made of, and of what was made of them."""

import importlib
import json
import time
from pathlib import Path

import pytest

from tasks import lineage
from tasks.artifacts import Artifact, Store, store_at
from tasks.lineage import changed_options, tree_of_inputs
from tests.tasks.stores_of_runs import key, make, run_of

HUB = Artifact(uri="hf://org/name@abc", kind="model", digest="a" * 64)
STAGES = ("prepare_data", "sft", "reward_model", "ppo", "remove_value_head", "merge_lora", "evaluate", "export")


@pytest.fixture
def store(store_uri: str) -> Store:
    return store_at(store_uri)


@pytest.fixture
def chain(store: Store, tmp_path: Path) -> dict[str, Artifact]:
    """data -> sft (from the hub's model) -> ppo, whose reward_model was made of data and sft."""
    data = make(store, tmp_path, key(1, "prepare_data"), kind="data")
    sft = make(store, tmp_path, key(2, "sft"), {"data": data, "model": HUB}, config={"learning_rate": 0.5})
    reward = make(store, tmp_path, key(3, "judge"), {"data": data, "model": sft}, kind="reward_model")
    ppo = make(store, tmp_path, key(4, "ppo"), {"policy": sft, "reward_model": reward}, kind="actor_critic")
    return {"data": data, "sft": sft, "reward_model": reward, "ppo": ppo}


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    assert lineage.main([*arguments]) == 0
    return capsys.readouterr().out.split("\n")


def heads(lines: list[str]) -> list[str]:
    """The lines that name an artifact, without digests."""
    return [line.rstrip() for line in lines if "─ " in line]


def test_an_artifact_is_followed_back_to_data_and_hub_and_forward_to_every_use(
    store: Store, chain: dict[str, Artifact], capsys: pytest.CaptureFixture[str]
) -> None:
    run_of(store, "p", "1", [HUB])
    data, sft, reward, ppo = (chain[name].digest[:12] for name in ("data", "sft", "reward_model", "ppo"))
    lines = shown(capsys, chain["sft"].uri)
    assert lines[0] == f"(model) {sft}"
    assert heads(lines) == [
        f"├─ data (data) {data}",
        "└─ model aaaaaaaaaaaa outside",
        f"├─ judge (reward_model) {reward}",
        f"│  └─ ppo (actor_critic) {ppo}",
        f"└─ ppo (actor_critic) {ppo} see above",
    ]
    assert "     hf://org/name@abc" in lines
    assert "  learning_rate = 0.5" in lines
    backwards = heads(shown(capsys, chain["ppo"].uri))
    assert backwards == [
        f"├─ policy (model) {sft}",
        f"│  ├─ data (data) {data}",
        "│  └─ model aaaaaaaaaaaa outside",
        f"└─ reward_model (reward_model) {reward}",
        f"   ├─ data (data) {data} see above",
        f"   └─ model (model) {sft} see above",
    ]


def test_a_parent_that_is_gone_is_shown_as_missing(
    store: Store, chain: dict[str, Artifact], capsys: pytest.CaptureFixture[str]
) -> None:
    store.delete([file.name for file in store.files("artifacts/prepare_data/")])
    [first, *_] = heads(shown(capsys, chain["sft"].uri))
    assert first.endswith(
        f"{chain['data'].digest[:12]} not in this store: something outside that no run on record names, or swept"
    )
    run_of(store, "p", "1", [chain["data"]])
    assert heads(shown(capsys, chain["sft"].uri))[0].endswith("missing: it was deleted")


def test_the_beginning_of_a_digest_names_an_artifact_if_it_is_the_only_one(
    store: Store, chain: dict[str, Artifact], capsys: pytest.CaptureFixture[str]
) -> None:
    by_address = shown(capsys, chain["ppo"].uri)
    assert shown(capsys, chain["ppo"].digest[:20], "--store", store.uri) == by_address
    assert lineage.main(["", "--store", store.uri]) == 2
    assert "4 artifacts (" in capsys.readouterr().err
    assert lineage.main(["fffffffffffffff", "--store", store.uri]) == 2
    assert "no artifact in" in capsys.readouterr().err
    assert lineage.main([chain["ppo"].uri[:-1] + "9"]) == 2
    assert "Check the address" in capsys.readouterr().err


def test_machines_get_the_same_as_json(
    store: Store, chain: dict[str, Artifact], capsys: pytest.CaptureFixture[str]
) -> None:
    tree = json.loads("\n".join(shown(capsys, chain["ppo"].uri, "--json")))
    assert [each["name"] for each in tree["inputs"]] == ["policy", "reward_model"]
    assert tree["inputs"][0]["inputs"][0]["digest"] == chain["data"].digest
    assert set(tree["libraries"]) >= {"torch", "transformers"}
    assert tree["code_version"]


def test_only_options_that_differ_from_the_defaults_are_shown_unless_all_are_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = importlib.import_module("tasks.ppo.config").PPOConfig(kl_coef=0.123, lora={"r": 4})
    options = config.model_dump(mode="json")
    changed = changed_options("ppo", options)
    assert changed["kl_coef"] == 0.123
    assert {name for name in changed if not name.startswith("lora.")} == {"kl_coef"}
    assert changed["lora.r"] == 4
    store = store_at(f"file://{tmp_path}/store")
    artifact = make(store, tmp_path, key(1, "ppo"), config=options)
    assert len(shown(capsys, artifact.uri)) < len(shown(capsys, artifact.uri, "--config", "all"))


@pytest.mark.parametrize("stage", STAGES)
def test_the_defaults_of_every_stage_are_known(stage: str) -> None:
    module = importlib.import_module(f"tasks.{stage}.config")
    wanted = f"{stage.replace('_', '')}config"
    [config] = [each for name, each in vars(module).items() if name.lower() == wanted]
    given = {"sft": {"path": "x"}} if stage == "prepare_data" else {}
    changed = changed_options(stage, config(**given).model_dump(mode="json"))
    assert all(name.split(".")[0] in given for name in changed)


def test_a_library_that_had_another_version_is_shown_where_it_had(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = store_at(f"file://{tmp_path}/store")
    monkeypatch.setattr("tasks.artifacts.library_versions", lambda: {"torch": "1.0", "peft": "2.0"})
    data = make(store, tmp_path, key(1, "data"))
    monkeypatch.setattr("tasks.artifacts.library_versions", lambda: {"torch": "3.0", "peft": "2.0"})
    lines = shown(capsys, make(store, tmp_path, key(2), {"data": data}).uri)
    versions = [line for line in lines if "torch" in line or "peft" in line]
    assert versions == ["  peft 2.0", "  torch 3.0", "     torch 1.0"]


def test_a_manifest_that_cannot_be_read_is_named_and_the_rest_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = store_at(f"file://{tmp_path}/store")
    artifact = make(store, tmp_path, key(1))
    make(store, tmp_path, key(2))
    store.write(f"artifacts/{key(2)}/manifest.json", b"{}")
    assert lineage.main([artifact.uri]) == 0
    assert f"{key(2)}/manifest.json is damaged" in capsys.readouterr().err


def test_a_stages_inputs_are_told_without_dates_and_the_same_every_time(
    chain: dict[str, Artifact], store: Store
) -> None:
    text = tree_of_inputs(store, {"model": chain["sft"], "ppo": chain["ppo"], "start": HUB})
    assert [line.split()[1] for line in text.split("\n") if line[0] in "├└"] == ["model", "ppo", "start"]
    assert "hf://org/name@abc" in text
    assert "20" + time.strftime("%y-") not in text
    assert text == tree_of_inputs(store, {"ppo": chain["ppo"], "model": chain["sft"], "start": HUB})
