"""The floor computes what it stands in for: transformers' Llama, its decoding, and our update's gradients."""

from argparse import Namespace
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear
from transformers import LlamaForCausalLM

from tasks.generation import Responses
from tasks.ppo.objective import Moments
from tasks.ppo.rollout import Rollout as OurRollout
from tasks.ppo.rollout import Run, roll_out
from tasks.ppo.setup import set_up
from tasks.ppo.targets import targets_of
from tasks.ppo.train import make_optimizer
from tasks.ppo.update import update
from tests.benchmarks.floor import Rollout, accumulate, join, measure
from tests.benchmarks.floor_models import SeparateModels
from tests.benchmarks.inputs import write_inputs
from tests.benchmarks.our_worker import input_folders
from tests.benchmarks.our_worker import make_config as our_config
from tests.benchmarks.plain_decoding import Decoded, decode
from tests.benchmarks.plain_llama import Pack, Shape, fuse, trunk
from tests.benchmarks.plain_lora import make_adapter
from tests.benchmarks.workloads import Workload, make_config, make_policy, make_prompts

pytestmark = pytest.mark.slow

# Queries share keys and values, and responses end early.
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_layers": 3, "num_heads": 4, "num_kv_heads": 2}
TIMES = {"response_length": 12, "eos_bias": 3.2, "batch_size": 6, "num_ppo_epochs": 1}
WORKLOAD = Workload("test", **SIZES, vocab_size=40, **TIMES)


@pytest.fixture
def model() -> LlamaForCausalLM:
    model = make_policy(WORKLOAD).eval()
    with torch.no_grad():  # logits that differ, so that the likeliest token does
        model.model.embed_tokens.weight[:, 1:].mul_(20)
        model.lm_head.weight[: WORKLOAD.eos].mul_(20)
    return model


@pytest.fixture
def shape() -> Shape:
    return Shape.of(make_config(WORKLOAD))


def pack(shape: Shape, rows: list[list[int]]) -> Pack:
    lengths = [len(row) for row in rows]
    positions = torch.cat([torch.arange(length) for length in lengths])
    ids = torch.tensor([token for row in rows for token in row])
    return Pack(lengths, ids, shape.rotations(positions), torch.arange(len(ids)))


def test_the_logits_are_those_of_transformers(model, shape) -> None:
    rows = make_prompts(WORKLOAD)
    weights = fuse(model.state_dict(), shape)
    logits = linear(trunk(weights, shape, pack(shape, rows)), weights["head"])
    with torch.no_grad():
        expected = torch.cat([model(input_ids=torch.tensor([row])).logits[0] for row in rows])
    said = slice(0, WORKLOAD.pad)  # the logit of padding is -4000
    torch.testing.assert_close(logits[:, said], expected[:, said], rtol=0, atol=1e-5)


def test_where_few_states_are_wanted_they_are_the_same(model, shape) -> None:
    weights, whole = fuse(model.state_dict(), shape), pack(shape, make_prompts(WORKLOAD))
    wanted = torch.tensor([3, 20, 21])
    few = trunk(weights, shape, Pack(whole.lengths, whole.ids, whole.rotations, wanted))
    torch.testing.assert_close(few, trunk(weights, shape, whole)[wanted])


def test_greedy_decoding_gives_what_generate_gives(model, shape) -> None:
    prompts = make_prompts(WORKLOAD)
    decoded = decode(
        fuse(model.state_dict(), shape), shape, prompts, WORKLOAD.response_length, eos=WORKLOAD.eos, temperature=None
    )
    assert 1 <= decoded.lengths.min() < decoded.lengths.max()
    for prompt, ids, length in zip(prompts, decoded.ids, decoded.lengths.tolist(), strict=True):
        expected = model.generate(torch.tensor([prompt]), max_new_tokens=WORKLOAD.response_length, do_sample=False)
        assert ids[:length].tolist() == expected[0, len(prompt) :].tolist()


def test_the_logprobs_of_decoding_are_those_of_a_forward(model, shape) -> None:
    weights, prompts = fuse(model.state_dict(), shape), make_prompts(WORKLOAD)
    torch.manual_seed(0)
    decoded = decode(weights, shape, prompts, WORKLOAD.response_length, eos=WORKLOAD.eos, temperature=0.7)
    rollout = join(shape, prompts, decoded, micro_batch_tokens=100)
    for batch in rollout.batches(range(len(prompts))):
        logits = linear(trunk(weights, shape, batch.pack), weights["head"]) / 0.7
        expected = torch.log_softmax(logits, dim=-1).gather(1, rollout.answers(batch)[:, None]).squeeze(1)
        torch.testing.assert_close(decoded.logprobs[batch.chosen][rollout.mask[batch.chosen]], expected)


def test_the_gradients_of_merged_adapters_are_those_of_adapters_beside_the_weights(model, shape) -> None:
    weights, whole = fuse(model.state_dict(), shape), pack(shape, make_prompts(WORKLOAD))
    adapter = make_adapter(weights, shape, range(1, 3), rank=2, zero=False)
    direction = torch.randn(len(whole.ids), WORKLOAD.hidden_size)

    def gradients(apply) -> list[Tensor]:
        (trunk(merged, shape, whole, apply=apply) * direction).sum().backward()
        found = [parameter.grad.clone() for parameter in adapter.parameters()]
        for parameter in adapter.parameters():
            parameter.grad = None
        return found

    def beside(x: Tensor, name: str) -> Tensor:
        result = linear(x, weights[name])
        if name in adapter.factors:
            factors = adapter.factors[name]
            downs = factors.down.chunk(len(factors.ups))
            parts = [linear(linear(x, down), up) for down, up in zip(downs, factors.ups, strict=True)]
            result = result + 2.0 * torch.cat(parts, dim=1)
        return result

    merged = adapter.merged(weights)
    ours = gradients(lambda x, name: adapter.apply(merged, x, name))
    for found, expected in zip(ours, gradients(beside), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


@pytest.fixture
def rollouts(shape, tmp_path) -> tuple[Run, OurRollout, SeparateModels, Rollout, Decoded]:
    """The same responses in our trainer and in the floor."""
    write_inputs(tmp_path, WORKLOAD)
    config = our_config(WORKLOAD, Namespace(mode="separate", micro_batch_tokens=100))
    run, prompts = set_up(config, input_folders(tmp_path, "separate"), tmp_path)
    models, ids = SeparateModels(tmp_path, shape), [prompt.ids for prompt in prompts.train]
    torch.manual_seed(0)
    decoded = decode(models.policy, shape, ids, WORKLOAD.response_length, eos=WORKLOAD.eos, temperature=0.7)
    rollout = join(shape, ids, decoded, micro_batch_tokens=100)
    ended = torch.ones(len(ids), dtype=torch.bool)
    responses = Responses(decoded.ids * rollout.mask, rollout.mask, decoded.logprobs * rollout.mask, ended)
    run = replace(run, engine=lambda *_: responses)
    return run, roll_out(run, prompts.train, "rollout", 0), models, rollout, decoded


def test_the_gradients_are_those_of_our_update(rollouts, shape, monkeypatch) -> None:
    run, ours, models, rollout, decoded = rollouts
    measured = measure(models, rollout, decoded)
    accumulate(models, rollout, measured, [4, 0, 3, 1, 2, 5])
    targets = targets_of(ours, run.config, run.config.kl_coef, Moments())
    torch.testing.assert_close(measured.advantages, targets.advantages, rtol=1e-4, atol=1e-4)
    checked = []

    def compare(*_: Any) -> Tensor:
        for name, model in {"policy": run.models.language_model, "value": run.models.value_model}.items():
            state = {key.removeprefix("backbone."): parameter.grad for key, parameter in model.named_parameters()}
            if name == "value":
                state["score.weight"] = state.pop("head.weight")
            for key, expected in fuse(state, shape).items():
                found = getattr(models, name)[key].grad
                torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
                checked.append(key)
        return torch.zeros(2)

    optimizer = make_optimizer(run)
    monkeypatch.setattr(optimizer, "step", compare)
    update(run, optimizer, ours, targets, 0)
    assert len(checked) == 2 * (6 * WORKLOAD.num_layers + 3)


@pytest.mark.parametrize("field", ["num_layers", "num_heads", "eps", "theta"])
def test_the_shape_is_that_of_the_config(field) -> None:
    config = make_config(WORKLOAD)
    expected = {"num_layers": 3, "num_heads": 4, "eps": config.rms_norm_eps, "theta": 10_000.0}
    assert getattr(Shape.of(config), field) == expected[field]
