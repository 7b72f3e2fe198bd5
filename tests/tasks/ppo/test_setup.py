import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tasks.errors import InputError
from tasks.models.model_files import context_length
from tasks.ppo import memory
from tasks.ppo.config import PPOConfig
from tasks.ppo.setup import check_batch, load_callbacks, set_up, token_budget_for
from tests.tasks.ppo.tiny import make_tokenizer


@pytest.fixture
def inputs(world, monkeypatch) -> dict[str, Any]:
    """Of a run that is fine; what is refused must be refused before the models are loaded."""

    def too_late(*_: object) -> None:
        raise AssertionError("the models were loaded")

    monkeypatch.setattr("tasks.ppo.setup.load_models", too_late)
    return {name: world[name] for name in ("data", "policy", "reward_model")}


def refused(inputs: dict[str, Any], message: str, **options: Any) -> None:
    settings = {"sampling": {"response_length": 8}, "batch_size": 4} | options
    with pytest.raises(InputError, match=message):
        set_up(PPOConfig.model_validate(settings), inputs, Path("unused"))


def test_a_batch_that_does_not_divide_is_refused_with_the_arithmetic() -> None:
    check_batch(PPOConfig(batch_size=48, num_mini_batches=3), 8)
    with pytest.raises(InputError, match=r"batch_size 48 .* num_mini_batches 4 x processes 8 = 32.*multiple of 32"):
        check_batch(PPOConfig(batch_size=48, num_mini_batches=4), 8)


def test_missing_and_surplus_inputs_are_refused(inputs) -> None:
    refused({"policy": inputs["policy"]}, "--input data=DIR is missing")
    refused({name: inputs[name] for name in ("data", "policy")}, "--input reward_model=DIR is missing")


def test_models_of_the_wrong_kind_are_refused(inputs) -> None:
    refused(inputs | {"policy": inputs["reward_model"]}, "kind `model`.*found a reward model")
    refused(inputs | {"reward_model": inputs["policy"]}, "kind `reward_model`.*found a causal language model")


def test_starts_and_references_that_do_not_fit_are_refused(inputs, tmp_path) -> None:
    policy, reward = inputs["policy"], inputs["reward_model"]
    refused(inputs, "--input start_policy=DIR is missing", start_policy="x")
    refused(inputs | {"start_policy": policy}, "kind `adapter`.*found a causal language model", start_policy="x")
    refused(inputs | {"start_policy": reward}, "kind `model`.*found a reward", start_policy="x", tuning="full")
    refused(inputs | {"start_value": policy}, "found a causal language model", start_value="x")
    refused(inputs | {"reference": reward}, "kind `model`.*found a reward model", reference_model="x")
    folder = shutil.copytree(policy, tmp_path / "reference")
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["w99"])
    tokenizer.save_pretrained(folder)
    refused(inputs | {"reference": folder}, "another tokenizer than the policy", reference_model="x")


def test_names_that_are_not_there_are_refused(inputs) -> None:
    refused(inputs, "best_metric 'eval_reward': expected one of eval_ended, ", best_metric="eval_reward")
    refused(inputs, "trackers: 'tensorbored' is none of", trackers=["tensorbored"])
    refused(inputs, "no_such", prompt_proportions={"no_such": 1.0})
    with pytest.raises(InputError, match="callbacks 'no_such:function': No module named 'no_such'"):
        load_callbacks(PPOConfig(callbacks=["no_such:function"]))


def test_a_response_longer_than_the_context_is_refused(inputs) -> None:
    assert context_length(inputs["policy"]) == 64
    refused(inputs, "response_length 64 leaves no room .* context of 64", sampling={"response_length": 64})


def test_prompts_that_do_not_fit_or_are_over_already_are_refused(inputs, tmp_path) -> None:
    for name, prompt, message in (
        ("long", " ".join(["w5"] * 60), "none of the 2 records .* at most 56 tokens.* the shortest has 60"),
        ("ended", "w5 <eos>", "record 0 of prompts_train ends in <eos>"),
        ("empty", "", "record 0 of prompts_train has no tokens"),
    ):
        folder = tmp_path / name
        folder.mkdir()
        for split in ("train", "test"):
            pq.write_table(pa.table({"prompt": [prompt] * 2}), folder / f"prompts_{split}.parquet")
        refused(inputs | {"data": folder}, message)


def test_too_little_memory_is_refused_with_what_to_change(inputs, monkeypatch) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda *_: 2**20)
    refused(inputs, "Each process needs weights .* and 0.00 GiB is free.*Lower micro_batch_tokens", batch_size=64)
    monkeypatch.setattr(memory, "free_bytes", lambda *_: 2**18)
    refused(inputs, "Set tuning lora", tuning="full", micro_batch_tokens=1)


def test_micro_batches_are_as_the_config_says_or_fit_the_device_and_the_model(world, tmp_path) -> None:
    inputs = {name: world[name] for name in ("data", "policy", "reward_model")}
    for options, expected in (({}, 1024), ({"micro_batch_tokens": 300}, 300)):
        run, _ = set_up(PPOConfig(batch_size=4, sampling={"response_length": 4}, **options), inputs, Path("unused"))
        assert run.token_budget == expected
    for config, device, expected in (
        ({"hidden_size": 255}, "cpu", 1024),
        ({"n_embd": 256}, "cpu", 512),
        ({"hidden_size": 64}, "cuda", 8192),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config))
        assert token_budget_for(tmp_path, torch.device(device)) == expected
