"""The pipelines file beside an export: `infra.run` takes it, and it says what the chain was told."""

import subprocess

import yaml

from flows.pipeline import Pipeline
from infra.entries import read_entries
from tasks.export.config import ExportConfig
from tasks.export.reproduction import commit_of, read_reproduction


def pipeline_of(**changes):
    source = {"path": "hf://org/data"}
    return Pipeline.model_validate(
        {
            "model": "org/base",
            "prepare_data": {"sft": source, "preferences": source, "prompts": source},
            "sft": {"seed": 3},
            "ppo": {"kl_coef": 0.125, "seed": 4},
            "evaluate": {"num_prompts": 7},
            "merge_lora": {"tolerance": 0.25},
            "certify": {"num_prompts": 5},
            **changes,
        }
    )


def lineage_of(pipeline):
    """What the runner writes of the inputs of an export, as far as it is used."""
    options = pipeline.model_dump(mode="json")
    groups = {"data": "prepare_data", "sft": "sft", "reward_model": "reward_model", "ppo": "ppo"}
    groups |= {"certificate": "certify", "evaluation": "evaluate", "model": "merge_lora"}
    made = {
        name: {"uri": f"file:///{name}", "stage": group, "config": options[group]} for name, group in groups.items()
    }
    return {**made, "base": {"uri": "hf://org/base@c0ffee"}}


def read_back(reproduction, tmp_path):
    (tmp_path / "reproduce.yaml").write_text(reproduction.entry())
    return read_entries(tmp_path / "reproduce.yaml")["reproduce"].parameters.pipeline


def test_the_file_holds_every_option_of_the_chain_and_an_open_gate(tmp_path):
    pipeline = pipeline_of()
    found = read_reproduction(ExportConfig(name="Mine"), lineage_of(pipeline))

    again = read_back(found, tmp_path)

    assert again.model == "hf://org/base@c0ffee"
    for group in ("prepare_data", "sft", "reward_model", "certify", "ppo", "evaluate", "merge_lora"):
        assert getattr(again, group) == getattr(pipeline, group), group
    assert again.export == ExportConfig(name="Mine")
    assert again.gate.all_rules(["any"]) == []
    assert found.seeds == {
        "sft.seed": 3,
        "ppo.seed": 4,
        **{name: 0 for name in found.seeds if name not in ("sft.seed", "ppo.seed")},
    }
    assert {"sft.seed", "reward_model.seed", "ppo.seed", "evaluate.seed"} < set(found.seeds)


def test_what_stood_in_for_a_stage_is_named(tmp_path):
    lineage = lineage_of(pipeline_of())
    del lineage["reward_model"], lineage["certificate"]
    lineage["sft"] = {"uri": "hf://org/sft@c0ffee"}
    lineage["ppo"]["config"]["rewards"] = [{"type": "function", "function": "gsm8k_reward_fn"}]
    lineage["evaluation"]["config"]["metrics"] = {"gsm8k": "tasks.rewards.rules:gsm8k_reward_fn"}

    again = read_back(read_reproduction(ExportConfig(), lineage), tmp_path)

    assert again.existing == {"sft": "hf://org/sft@c0ffee"}
    assert again.reward_model is None
    assert again.certify is None


def test_without_a_lineage_there_is_no_file_to_run():
    found = read_reproduction(ExportConfig(), {"model": {"uri": "file:///model"}})

    assert (found.pipeline, found.seeds) == ({}, {})
    assert found.versions["torch"]


def test_the_versions_are_those_that_made_the_model():
    lineage = lineage_of(pipeline_of())
    lineage["model"]["libraries"] = {"torch": "1.0"}

    assert read_reproduction(ExportConfig(), lineage).versions["torch"] == "1.0"


def test_the_commit_tells_of_changes_that_are_not_in_it(tmp_path):
    def git(*words):
        options = ["-c", "user.name=me", "-c", "user.email=me@here", "-c", "commit.gpgsign=false"]
        done = subprocess.run(["git", *options, *words], cwd=tmp_path, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    git("init", "--quiet")
    (tmp_path / "file").write_text("one")
    git("add", "file")
    git("commit", "--quiet", "-m", "one")
    commit = git("rev-parse", "HEAD")

    assert commit_of(tmp_path) == commit
    (tmp_path / "file").write_text("two")
    assert commit_of(tmp_path) == f"{commit} with changes that are not committed"
    assert commit_of(tmp_path / "nowhere") is None


def test_the_file_is_yaml_that_a_person_can_read(tmp_path):
    text = read_reproduction(ExportConfig(), lineage_of(pipeline_of())).entry()

    assert yaml.safe_load(text)["deployments"][0]["parameters"]["pipeline"]["ppo"]["kl_coef"] == 0.125
