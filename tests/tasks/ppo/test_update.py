"""The rollout and the gradient against plain forwards of single rows, without padding or micro-batches."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from tasks.ppo.config import PPOConfig
from tasks.ppo.optimizer import Optimizer
from tasks.ppo.rollout import Rollout, Run, roll_out
from tasks.ppo.setup import set_up
from tasks.ppo.update import Targets, mini_batches, targets_of, update
from tasks.prompts import batch_of

OPTIONS: dict[str, Any] = {
    "batch_size": 8,
    "num_ppo_epochs": 1,
    "learning_rate": 1e-2,
    "lora": {"r": 4},
    "sampling": {"response_length": 9, "temperature": 0.7},
    "micro_batch_tokens": 40,
    "kl_coef": 0.3,
    "missing_eos_penalty": 1.0,
    "gamma": 0.9,
}


def rolled_out(world, models: str, **options: Any) -> tuple[Run, Rollout]:
    config = PPOConfig.model_validate(OPTIONS | {"models": models} | options)
    run, prompts = set_up(config, {name: world[name] for name in ("data", "policy", "reward_model")})
    run = replace(run, stop_ids=[1, 5, 9, 12])  # responses of many lengths
    with torch.no_grad():  # a policy that has left its reference
        for parameter in run.models.trainable["policy"].values():
            parameter.add_(0.02)
    return run, roll_out(run, batch_of(prompts.train, 0, config.batch_size, 0), "rollout", 0, 0)


def rows(rollout: Rollout) -> list[tuple[int, int, Tensor]]:
    """Of each episode: tokens of its prompt, of its response, and both as ids [1, T]."""
    episodes, lengths = rollout.episodes, rollout.episodes.lengths.tolist()
    return [
        (prompt_length, length - prompt_length, episodes.ids[row : row + 1, :length])
        for row, (prompt_length, length) in enumerate(zip(episodes.prompt_lengths.tolist(), lengths, strict=True))
    ]


def naive_logprobs(model: torch.nn.Module, prompt_length: int, ids: Tensor) -> Tensor:
    logprobs = torch.log_softmax(model(input_ids=ids).logits[0, :-1] / 0.7, dim=-1)
    return logprobs.gather(1, ids[0, 1:, None])[prompt_length - 1 :, 0]


@pytest.mark.parametrize("models", ["shared", "separate"])
def test_a_rollout_holds_what_single_forwards_say(world, models) -> None:
    run, rollout = rolled_out(world, models)
    assert len({length for _, length, _ in rows(rollout)}) > 2
    for row, (prompt_length, length, ids) in enumerate(rows(rollout)):
        for measured, model in (
            (rollout.old_logprobs, run.models.policy),
            (rollout.ref_logprobs, run.models.reference),
        ):
            assert_close(measured[row, :length], naive_logprobs(model(), prompt_length, ids).detach())
        values = run.models.value()(ids)[0, prompt_length - 1 : -1]
        assert_close(rollout.values[row, :length], values.detach())
        assert_close(rollout.scores[row], run.models.reward()(ids)[0, -1])
    assert_close(rollout.generation_logprobs, rollout.old_logprobs, rtol=1e-4, atol=1e-5)
    assert rollout.kl.abs().max() > 0.01
    for tensor in (rollout.old_logprobs, rollout.ref_logprobs, rollout.values, rollout.generation_logprobs):
        assert not tensor[~rollout.mask].any()


def test_targets_are_those_of_the_definitions(world) -> None:
    run, rollout = rolled_out(world, "shared", lam=1.0)
    targets = targets_of(rollout, run.config)
    expected = torch.zeros_like(targets.returns)
    for row, (_, length, _) in enumerate(rows(rollout)):
        rewards = (-0.3 * (rollout.old_logprobs - rollout.ref_logprobs))[row, :length].tolist()
        rewards[-1] += rollout.scores[row].item() - (0.0 if rollout.ended[row] else 1.0)
        for t in range(length):  # with lambda 1 the return is the discounted sum of the rewards
            expected[row, t] = sum(0.9**k * reward for k, reward in enumerate(rewards[t:]))
    assert_close(targets.returns, expected, rtol=1e-4, atol=1e-4)
    mask = rollout.mask
    assert_close(targets.advantages[mask].mean().item(), 0.0, atol=1e-5, rtol=0)
    assert_close(targets.advantages[mask].std().item(), 1.0, atol=1e-5, rtol=0)
    raw = (expected - rollout.values)[mask]
    assert_close(targets.advantages[mask], (raw - raw.mean()) / raw.std(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("models", ["shared", "separate"])
def test_the_gradient_is_that_of_the_mean_over_the_tokens_of_the_mini_batch(world, monkeypatch, models) -> None:
    run, rollout = rolled_out(world, models)
    optimizer = Optimizer(run.models.trainable, run.config, run.processes)
    targets = targets_of(rollout, run.config)
    # An old policy and an old value model further away, so that the clips are at work.
    noise = torch.randn(rollout.mask.shape, generator=torch.Generator().manual_seed(0)) * rollout.mask
    shifted = Rollout(
        **vars(rollout) | {"old_logprobs": rollout.old_logprobs + 0.3 * noise, "values": rollout.values + noise}
    )
    seen: list[Tensor] = []
    monkeypatch.setattr(optimizer, "step", lambda _: seen.append(optimizer.gradient.clone()) or torch.zeros(2))
    metrics = update(run, optimizer, shifted, targets, 0)
    optimizer.gradient.zero_()
    naive_loss(run, shifted, targets, "policy").backward()
    naive_loss(run, shifted, targets, "value").backward()
    assert_close(seen[0], optimizer.gradient, rtol=1e-3, atol=1e-5)
    assert 0.1 < metrics["clip_fraction"] < 0.9
    assert 0.1 < metrics["value_clip_fraction"] < 0.9


def naive_loss(run: Run, rollout: Rollout, targets: Targets, part: str) -> Tensor:
    """The mean loss over all tokens, from one unpadded forward of each row; vf_coef 0.1 and cliprange 0.2."""
    total = torch.zeros(())
    model = run.models.policy() if part == "policy" else run.models.value()
    for row, (prompt_length, length, ids) in enumerate(rows(rollout)):
        if part == "policy":
            ratio = (naive_logprobs(model, prompt_length, ids) - rollout.old_logprobs[row, :length]).exp()
            advantages = targets.advantages[row, :length]
            total = total - torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages).sum()
        else:
            values, old = model(ids)[0, prompt_length - 1 : -1], rollout.values[row, :length]
            returns = targets.returns[row, :length]
            near = torch.minimum(torch.maximum(values, old - 0.2), old + 0.2)
            total = total + 0.1 * 0.5 * torch.maximum((values - returns) ** 2, (near - returns) ** 2).sum()
    return total / rollout.mask.sum()


def test_mini_batches_split_the_batch_anew_in_each_epoch(world) -> None:
    run, _ = rolled_out(world, "shared", num_mini_batches=4)
    epochs = [mini_batches(run, 0, epoch, torch.device("cpu")) for epoch in (0, 1, 0)]
    for parts in epochs:
        assert [len(part) for part in parts] == [2, 2, 2, 2]
        assert sorted(torch.cat(parts).tolist()) == list(range(8))
    assert torch.cat(epochs[0]).tolist() != torch.cat(epochs[1]).tolist()
    assert torch.cat(epochs[0]).tolist() == torch.cat(epochs[2]).tolist()
    assert torch.cat(mini_batches(run, 1, 0, torch.device("cpu"))).tolist() != torch.cat(epochs[0]).tolist()


def test_the_number_of_optimizer_steps_is_epochs_times_mini_batches(world, monkeypatch) -> None:
    run, rollout = rolled_out(world, "shared", num_mini_batches=4, num_ppo_epochs=3)
    optimizer = Optimizer(run.models.trainable, run.config, run.processes)
    numbers: list[int] = []
    step = optimizer.step
    monkeypatch.setattr(optimizer, "step", lambda number: numbers.append(number) or step(number))
    update(run, optimizer, rollout, targets_of(rollout, run.config), iteration=2)
    assert numbers == list(range(24, 36))
