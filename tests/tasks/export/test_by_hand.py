"""`python -m tasks.export`."""

import json
import re

import pytest
import torch
from transformers import AutoModelForCausalLM

from tasks.export.__main__ import main
from tests.tasks.evaluate import tiny_chain
from tests.tasks.export.tiny_export import write_adapted, write_evaluation


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return write_adapted(tmp_path_factory.mktemp("inputs"))


def test_a_model_is_exported_with_its_adapter_into_a_new_folder(inputs, tmp_path):
    evaluation = write_evaluation(tmp_path / "evaluation")
    words = [inputs["model"], "--output", tmp_path / "new" / "out", "--dtype", "float16", "--max-shard-size", "2KB"]
    words += ["--adapter", inputs["adapter"], inputs["adapter_base"], "--input", f"evaluation={evaluation}"]

    assert main([str(word) for word in words]) == 0

    output = tmp_path / "new" / "out"
    assert AutoModelForCausalLM.from_pretrained(output, dtype="auto").dtype == torch.float16
    assert len(list(output.glob("model-*.safetensors"))) > 1
    named = json.loads((output / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert named == str(inputs["adapter_base"])
    assert "PPO beats SFT." in (output / "README.md").read_text()
    assert [path.name for path in output.parent.iterdir()] == ["out"]


def test_a_model_that_was_never_evaluated_answers_the_prompts_given(inputs, tmp_path):
    words = [str(inputs["model"]), "--output", str(tmp_path / "out"), "--prompt", "good film", "--license", "mit"]

    assert main(words) == 0

    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (report["prompt"], report["max_logit_difference"], report["license"]) == ("good film", 0.0, "mit")
    assert "was not evaluated" in (tmp_path / "out" / "README.md").read_text()


def test_an_empty_folder_may_stand_where_the_export_goes(inputs, tmp_path):
    (tmp_path / "out").mkdir()

    assert main([str(inputs["model"]), "--output", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "config.json").is_file()


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (["--dtype", "float8"], "dtype: Input should be"),
        (["--input", "mine"], "--input mine: expected NAME=WHAT"),
        (["--config", "nowhere.json"], r"--config nowhere\.json does not exist"),
        (["--adapter", "/nowhere/adapter", "/nowhere/base"], "there is no /nowhere/adapter"),
    ],
)
def test_what_does_not_fit_is_refused_and_leaves_nothing(inputs, tmp_path, capsys, words, fault):
    assert main([str(inputs["model"]), "--output", str(tmp_path / "out"), *words]) == 2
    assert re.search(fault, capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_holds_something_is_left_alone(inputs, tmp_path, capsys):
    (tmp_path / "note.txt").write_text("mine")

    assert main([str(inputs["model"]), "--output", str(tmp_path)]) == 2
    assert "exists and is not an empty folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]


def test_a_model_that_fails_the_proof_leaves_nothing(inputs, tmp_path, capsys):
    (tmp_path / "options.json").write_text('{"logit_tolerance": 1e-9}')
    words = ["--dtype", "bfloat16", "--config", str(tmp_path / "options.json")]

    assert main([str(inputs["model"]), "--output", str(tmp_path / "out"), *words]) == 2
    assert "says something else than the model before export" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["options.json"]


def test_a_reward_model_is_no_model_to_export(tmp_path, capsys):
    reward_model = tiny_chain.write_reward_model(tmp_path / "reward_model")

    assert main([str(reward_model), "--output", str(tmp_path / "out")]) == 2
    assert "expected a causal language model" in capsys.readouterr().err
