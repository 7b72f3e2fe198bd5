"""What the engine asks of a vLLM server, what it makes of the answers, and what it refuses."""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch.testing import assert_close

from tasks.engines.config import VllmConfig
from tasks.engines.vllm import Server, read_completion
from tasks.errors import InputError
from tasks.models.modeling import save_model
from tasks.ppo.checkpoint import Progress
from tasks.ppo.config import PPOConfig
from tasks.ppo.objective import Moments, importance_weights
from tasks.ppo.rollout import Run, roll_out
from tasks.ppo.setup import Prompts, set_up
from tasks.ppo.targets import targets_of
from tasks.ppo.train import iterate, make_optimizer
from tasks.prompts import Prompt, batch_of
from tests.tasks.engines.stand_in import StandIn, serving
from tests.tasks.ppo import tiny

pytestmark = pytest.mark.slow

TEMPERATURE = 0.7


@pytest.fixture
def server(world: dict[str, Path]) -> Iterator[StandIn]:
    with serving(StandIn(world["policy"])) as stand_in:
        yield stand_in


def make_run(world: dict[str, Path], server: StandIn, **vllm: Any) -> tuple[Run, list[Prompt]]:
    """A run whose policy has left the server's base, and the prompts of an iteration."""
    options = {
        "batch_size": 8,
        "lora": {"r": 4},
        "sampling": {"response_length": 9, "temperature": TEMPERATURE},
        "rollout_engine": "vllm",
        "vllm": {"url": server.url, **vllm},
    }
    inputs = {name: world[name] for name in ("data", "policy", "reward_model")}
    run, prompts = set_up(PPOConfig.model_validate(options), inputs, Path("unused"))
    move_policy(run)
    run.engine.stop_ids = [1, 5, 9, 12]  # responses of many lengths
    server.requests.clear()
    return run, batch_of(prompts.train, 0, run.config.batch_size, 0, None)


def move_policy(run: Run) -> None:
    with torch.no_grad():
        for parameter in run.models.trainable["policy"].values():
            parameter.add_(0.05)


def test_responses_are_those_of_the_policy_of_the_moment(world, server) -> None:
    run, prompts = make_run(world, server)
    for number in range(2):
        rollout = roll_out(run, prompts, "rollout", number)
        assert_close(rollout.generation_logprobs, rollout.old_logprobs, rtol=1e-4, atol=1e-5)
        assert (rollout.old_logprobs - rollout.ref_logprobs).abs().max() > 0.05
        assert 0 < rollout.ended.sum() < len(prompts)
        move_policy(run)
    assert len(set(server.sent)) == 2
    assert list(server.adapters) == server.sent[1:]  # the first one is gone


def test_two_runs_never_use_a_name_twice(world, server) -> None:
    for _ in range(2):
        run, prompts = make_run(world, server)
        roll_out(run, prompts, "rollout", 0)
    assert len(set(server.sent)) == 2


def test_requests_ask_for_the_whole_distribution_at_the_temperature(world, server) -> None:
    run, prompts = make_run(world, server)
    roll_out(run, prompts, "rollout", 0)
    assert sorted(request["prompt"] for request in server.requests) == sorted(list(prompt.ids) for prompt in prompts)
    assert len({request["seed"] for request in server.requests}) == len(prompts)
    for request in server.requests:
        expected = {"temperature": TEMPERATURE, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
        assert expected.items() <= request.items()


@pytest.mark.parametrize(("cap", "expected"), [(1.5, 1.5), (8.0, 2.0), (None, 1.0)])
def test_advantages_are_weighted_up_to_the_cap(world, server, cap, expected) -> None:
    run, prompts = make_run(world, server, importance_cap=cap)
    rollout = roll_out(run, prompts, "rollout", 0)
    exact = replace(rollout, generation_logprobs=rollout.old_logprobs)
    further = replace(rollout, generation_logprobs=rollout.old_logprobs - math.log(2))
    plain, weighted = (targets_of(given, run.config, 0.1, Moments()) for given in (exact, further))
    assert_close(weighted.advantages, expected * plain.advantages)
    assert_close(weighted.returns, plain.returns)


def test_importance_weights_are_the_ratio_up_to_the_cap() -> None:
    old = torch.tensor([0.5, 0.2, 0.9]).log()
    generation = torch.tensor([0.25, 0.4, 0.1]).log()
    assert_close(importance_weights(old, generation, 3.0), torch.tensor([2.0, 0.5, 3.0]))


def test_no_server_is_refused_before_the_models_load(world, server) -> None:
    absent = StandIn(world["policy"], url="http://127.0.0.1:9")
    with pytest.raises(InputError, match=r"no answer from http://127.0.0.1:9/v1/models.*vllm serve .*policy"):
        make_run(world, absent)


def test_a_server_with_another_base_stops_the_run(world, tmp_path) -> None:
    other = tmp_path / "other"
    save_model(other, tiny.make_model(seed=9), tiny.make_tokenizer())
    with serving(StandIn(other)) as server:
        run, prompts = make_run(world, server)
        with pytest.raises(InputError, match="is not the policy"):
            iterate(run, make_optimizer(run), Prompts(prompts, []), Progress(num_processes=1, kl_coef=0.1))


def test_adapters_are_written_where_the_server_looks(world, server, tmp_path) -> None:
    run, prompts = make_run(world, server, adapter_folder=str(tmp_path))
    roll_out(run, prompts, "rollout", 0)
    assert [path.parent.name for path in tmp_path.glob("*/*/adapter_model.safetensors")] == server.sent
    with pytest.raises(InputError, match=r"vllm.adapter_folder: .*absent is no folder"):
        make_run(world, server, adapter_folder=str(tmp_path / "absent"))


def test_a_response_that_ends_with_no_end_of_ours_is_refused(world, server) -> None:
    run, prompts = make_run(world, server)
    run.engine.server.complete = lambda _: {"token_ids": [6], "logprobs": {"token_logprobs": [-1.0]}}
    with pytest.raises(InputError, match="ended after 1 tokens with 6, which is no end here"):
        roll_out(run, prompts, "rollout", 0)


def test_too_short_a_context_is_refused(world) -> None:
    message = r"takes 10 tokens.*up to 15.*--max-model-len 15"
    with serving(StandIn(world["policy"], max_model_len=10)) as server, pytest.raises(InputError, match=message):
        make_run(world, server)


def test_logprobs_without_the_temperature_are_refused(world) -> None:
    stand_in = StandIn(world["policy"], leaves_out_temperature=True)
    with serving(stand_in) as server, pytest.raises(InputError, match="--logprobs-mode processed_logprobs"):
        make_run(world, server)


@pytest.mark.parametrize(
    "choice",
    [
        {"token_ids": None, "logprobs": {"token_logprobs": [-1.0]}},
        {"token_ids": [3], "logprobs": None},
        {"token_ids": [3, 4], "logprobs": {"token_logprobs": [-1.0]}},
        {"token_ids": [3], "logprobs": {"token_logprobs": [None]}},
    ],
)
def test_an_answer_without_tokens_and_logprobs_is_refused(choice) -> None:
    with pytest.raises(InputError, match="should hold token_ids"):
        read_completion(choice)


def test_what_the_server_refuses_is_told_in_its_own_words(server) -> None:
    with pytest.raises(InputError, match=r"/v1/completions answered 404: .*`lost` does not exist"):
        Server(VllmConfig(url=server.url)).complete({"model": "lost"})


def test_a_server_that_fails_is_no_bad_input(server) -> None:
    server.fails = True
    with pytest.raises(ConnectionError, match=r"/v1/models answered 500: .*out of memory"):
        Server(VllmConfig(url=server.url)).models()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tuning": "full"}, "Set tuning lora"),
        ({"lora": {"use_dora": True}}, "no use_dora"),
        ({"sampling": {"top_p": 0.9}}, "top_p 1"),
        ({"sampling": {"top_k": 5}}, "top_k 0"),
        ({"sampling": {"min_new_tokens": 5}}, "min_new_tokens 0"),
        ({"vllm": {"url": "localhost:8000"}}, "expected http"),
        ({"vllm": {"url": "http://user:word@localhost:8000"}}, "holds a user name or password"),
    ],
)
def test_what_cannot_be_sampled_by_the_server_is_refused(options, message) -> None:
    with pytest.raises(ValidationError, match=message):
        PPOConfig.model_validate({"rollout_engine": "vllm", **options})
