"""The rollout and the gradient against plain forwards of single rows, without padding or micro-batches."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from tasks.episodes import Episodes
from tasks.models.modeling import load_reward_model
from tasks.ppo.config import PPOConfig
from tasks.ppo.objective import Moments
from tasks.ppo.rollout import Rollout, Run, roll_out
from tasks.ppo.setup import set_up
from tasks.ppo.targets import Targets, targets_of
from tasks.ppo.train import make_optimizer
from tasks.ppo.update import mini_batches, update
from tasks.prompts import batch_of

OPTIONS: dict[str, Any] = {
    "batch_size": 8,
    "num_ppo_epochs": 1,
    "learning_rate": 1e-2,
    "lora": {"r": 4},
    "sampling": {"response_length": 9, "temperature": 0.7},
    "old_logprobs": "forward",
    "micro_batch_tokens": 40,
    "kl_coef": 0.3,
    "missing_eos_penalty": 1.0,
    "gamma": 0.9,
}
FORMS: dict[str, dict[str, Any]] = {
    "lora": {},
    "full": {"tuning": "full"},
    "lora-last": {"trainable_layers": 1},
    "lora-last-head": {"trainable_layers": 1, "value_model": "head"},
    "freeze": {"tuning": "freeze", "trainable_layers": 1, "value_init": "base"},
    "freeze-head": {"tuning": "freeze", "trainable_layers": 1, "value_model": "head"},
}


def rolled_out(world, form: str, **options: Any) -> tuple[Run, Rollout]:
    config = PPOConfig.model_validate(OPTIONS | FORMS[form] | options)
    run, prompts = set_up(config, {name: world[name] for name in ("data", "policy", "reward_model")}, Path("unused"))
    run = replace(run, engine=replace(run.engine, stop_ids=[1, 5, 9, 12]))  # responses of many lengths
    with torch.no_grad():  # a policy that has left its reference
        for parameter in run.models.trainable["policy"].values():
            parameter.add_(0.02)
    return run, roll_out(run, batch_of(prompts.train, 0, config.batch_size, 0, None), "rollout", 0, 0)


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


@pytest.mark.parametrize("form", FORMS)
def test_a_rollout_holds_what_single_forwards_say(world, form) -> None:
    run, rollout = rolled_out(world, form)
    reward_model = load_reward_model(world["reward_model"])
    assert len({length for _, length, _ in rows(rollout)}) > 2
    for row, (prompt_length, length, ids) in enumerate(rows(rollout)):
        for measured, model in (
            (rollout.old_logprobs, run.models.policy),
            (rollout.ref_logprobs, run.models.reference),
        ):
            assert_close(measured[row, :length], naive_logprobs(model(), prompt_length, ids).detach())
        values = run.models.value()(ids)[0, prompt_length - 1 : -1]
        assert_close(rollout.values[row, :length], values.detach())
        assert_close(rollout.scores[row], reward_model(ids)[0, -1])
    assert_close(rollout.generation_logprobs, rollout.old_logprobs, rtol=1e-4, atol=1e-5)
    assert (rollout.old_logprobs - rollout.ref_logprobs).abs().max() > 0.01
    for tensor in (rollout.old_logprobs, rollout.ref_logprobs, rollout.values, rollout.generation_logprobs):
        assert not tensor[~rollout.mask].any()


@pytest.mark.parametrize("form", ["lora", "freeze-head"])
def test_old_logprobs_from_generation_are_those_of_the_forward_to_rounding(world, form) -> None:
    (_, measured), (_, generated) = (
        rolled_out(world, form, old_logprobs=source) for source in ("forward", "generation")
    )
    assert torch.equal(generated.old_logprobs, measured.generation_logprobs)
    assert not torch.equal(generated.old_logprobs, measured.old_logprobs)
    assert_close(generated.old_logprobs, measured.old_logprobs, rtol=1e-4, atol=1e-5)
    assert_close(generated.values, measured.values)


def test_targets_are_those_of_the_definitions(world) -> None:
    run, rollout = rolled_out(world, "lora", lam=1.0)
    targets = targets_of(rollout, run.config, run.config.kl_coef, Moments())
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


@pytest.mark.parametrize("form", FORMS)
def test_the_gradient_is_that_of_the_mean_over_the_tokens_of_the_mini_batch(world, monkeypatch, form) -> None:
    run, rollout = rolled_out(world, form)
    torch.nn.init.normal_(run.models.value_model.head.weight, generator=torch.Generator().manual_seed(0))
    optimizer = make_optimizer(run)
    targets = targets_of(rollout, run.config, run.config.kl_coef, Moments())
    # An old policy and an old value model further away, so that the clips are at work.
    noise = torch.randn(rollout.mask.shape, generator=torch.Generator().manual_seed(0)) * rollout.mask
    shifted = Rollout(
        **vars(rollout) | {"old_logprobs": rollout.old_logprobs + 0.3 * noise, "values": rollout.values + noise}
    )
    seen: list[Tensor] = []
    monkeypatch.setattr(optimizer, "step", lambda *_: seen.append(optimizer.gradient.clone()) or torch.zeros(2))
    metrics = update(run, optimizer, shifted, targets, 0)
    optimizer.gradient.zero_()
    naive_loss(run, shifted, targets, "policy").backward()
    naive_loss(run, shifted, targets, "value").backward()
    assert_close(seen[0], optimizer.gradient, rtol=1e-3, atol=1e-5)
    assert 0.1 < metrics["clip_fraction"] < 0.9
    assert 0.03 < metrics["value_clip_fraction"] < 0.9


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


def gradient_of(run: Run, rollout: Rollout, targets: Targets) -> Tensor:
    """What `update` gives the optimizer for its first step, policy's and value model's in a row."""
    optimizer = make_optimizer(run)
    seen: list[Tensor] = []
    optimizer.step = lambda *_: seen.append(optimizer.gradient.clone()) or optimizer.clear() or torch.zeros(2)
    update(run, optimizer, rollout, targets, 0)
    return seen[0]


def naive_gradient(run: Run, loss: Tensor) -> Tensor:
    """The gradient of a loss, in the order of the optimizer's buffer."""
    optimizer = make_optimizer(run)
    loss.backward()
    return optimizer.gradient.clone()


def naive_mean(run: Run, rollout: Rollout, term: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Mean over all tokens of term(logits [R, V] at the temperature, reference's logprobs [R]), row by row."""
    model, total = run.models.policy(), torch.zeros(())
    for row, (prompt_length, length, ids) in enumerate(rows(rollout)):
        logprobs = torch.log_softmax(model(input_ids=ids).logits[0, prompt_length - 1 : -1] / 0.7, dim=-1)
        sampled = logprobs.gather(1, ids[0, prompt_length:, None])[:, 0]
        total = total + term(logprobs, sampled - rollout.ref_logprobs[row, :length]).sum()
    return total / rollout.mask.sum()


def naive_ptx(run: Run, step: int, size: int) -> Tensor:
    """Mean language-model loss of the step's records, over their completions' tokens."""
    episodes, model = run.ptx.batch(size, run.config.seed, step, torch.device("cpu")), run.models.policy()
    losses = []
    for ids, start, length in zip(
        episodes.ids, episodes.prompt_lengths.tolist(), episodes.lengths.tolist(), strict=True
    ):
        logprobs = torch.log_softmax(model(input_ids=ids[None, :length]).logits[0, :-1], dim=-1)
        losses.append(-logprobs.gather(1, ids[1:length, None])[start - 1 :, 0])
    return torch.cat(losses).mean()


def test_kl_in_the_loss_adds_its_gradient(world) -> None:
    run, rollout = rolled_out(world, "lora", kl_in="loss", kl_estimator="k2")
    plain, _ = rolled_out(world, "lora")
    targets = targets_of(rollout, run.config, 0.3, Moments())
    added = gradient_of(run, rollout, targets) - gradient_of(plain, rollout, targets)
    assert_close(
        added, naive_gradient(run, 0.3 * naive_mean(run, rollout, lambda _, d: 0.5 * d**2)), rtol=1e-3, atol=1e-5
    )


def test_the_entropy_bonus_adds_its_gradient(world) -> None:
    run, rollout = rolled_out(world, "lora", entropy_coef=0.2)
    plain, _ = rolled_out(world, "lora")
    targets = targets_of(rollout, run.config, 0.3, Moments())
    added = gradient_of(run, rollout, targets) - gradient_of(plain, rollout, targets)
    negated = naive_mean(run, rollout, lambda logprobs, _: (logprobs.exp() * logprobs).sum(-1))
    assert_close(added, naive_gradient(run, 0.2 * negated), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("form", ["lora", "full", "lora-last"])
def test_the_ptx_loss_is_mixed_in_with_its_weight(world, form) -> None:
    run, rollout = rolled_out(world, form, ptx_coef=0.25, ptx_batch_size=6)
    plain, _ = rolled_out(world, form)
    targets = targets_of(rollout, run.config, 0.3, Moments())
    mixed, without = gradient_of(run, rollout, targets), gradient_of(plain, rollout, targets)
    num_policy = make_optimizer(run).parts[0].numel()
    ptx = naive_gradient(run, naive_ptx(run, 0, 6))
    assert_close(mixed[:num_policy], (0.75 * without + 0.25 * ptx)[:num_policy], rtol=1e-3, atol=1e-5)
    assert_close(mixed[num_policy:], without[num_policy:])


def test_a_head_on_the_trunk_gets_both_gradients_from_one_forward(world) -> None:
    run, rollout = rolled_out(world, "full", value_model="head")
    torch.nn.init.normal_(run.models.value_model.head.weight, generator=torch.Generator().manual_seed(0))
    targets = targets_of(rollout, run.config, 0.3, Moments())
    loss = naive_loss(run, rollout, targets, "policy") + naive_loss(run, rollout, targets, "value")
    forwards: list[int] = []
    hook = run.models.language_model.model.register_forward_hook(lambda *_: forwards.append(1))
    found = gradient_of(run, rollout, targets)
    hook.remove()
    assert_close(found, naive_gradient(run, loss), rtol=1e-3, atol=1e-5)
    assert len(forwards) == len(rollout.episodes.split(run.token_budget))


@pytest.mark.parametrize("form", ["lora-last", "lora-last-head", "freeze", "freeze-head"])
def test_frozen_lower_layers_run_once_a_rollout(world, form) -> None:
    run, rollout = rolled_out(world, form)
    embeddings = run.models.language_model.get_input_embeddings()
    forwards: list[int] = []
    hook = embeddings.register_forward_hook(lambda *_: forwards.append(1))
    episodes = run.models.with_states(rollout.episodes, run.token_budget)
    assert_close(episodes.states, rollout.episodes.states)
    assert len(forwards) == len(rollout.episodes.split(run.token_budget))
    gradient_of(run, rollout, targets_of(rollout, run.config, 0.3, Moments()))
    assert len(forwards) == len(rollout.episodes.split(run.token_budget))
    hook.remove()


class Rank:
    """One of several processes whose gradients a test adds up itself."""

    def __init__(self, rank: int, count: int) -> None:
        self.rank, self.count, self.device = rank, count, torch.device("cpu")

    def share(self, num_rows: int) -> list[int]:
        return list(range(self.rank, num_rows, self.count))

    def sum_in_place(self, tensor: Tensor) -> Tensor:
        return tensor

    def sum_each(self, numbers: dict[str, Tensor]) -> dict[str, Tensor]:
        return numbers


@given(
    order=st.permutations(range(8)),
    micro_batch_tokens=st.integers(1, 200),
    num_processes=st.sampled_from([1, 2, 4]),
    padding=st.integers(0, 5),
)
@settings(max_examples=6, deadline=None)
def test_order_padding_micro_batches_and_processes_do_not_change_the_gradient(
    world, order, micro_batch_tokens, num_processes, padding
) -> None:
    run, rollout = ROLLED.setdefault("run", rolled_out(world, "lora", ptx_coef=0.1, ptx_batch_size=8))
    targets = targets_of(rollout, run.config, 0.3, Moments())
    expected = gradient_of(run, rollout, targets)

    config = run.config.model_copy(update={"ratio_threshold": None})
    rows = torch.tensor(order)
    shuffled = permuted(rollout, rows, padding)
    moved = replace(
        targets, advantages=widened(targets.advantages[rows], padding), returns=widened(targets.returns[rows], padding)
    )
    ranks = [
        replace(run, config=config, token_budget=micro_batch_tokens, processes=Rank(rank, num_processes))
        for rank in range(num_processes)
    ]
    total = sum(gradient_of(rank, shuffled, moved) for rank in ranks)
    assert_close(total, expected, rtol=1e-4, atol=1e-6)


ROLLED: dict[str, tuple[Run, Rollout]] = {}


def widened(tensor: Tensor, padding: int) -> Tensor:
    return torch.nn.functional.pad(tensor, (0, padding))


def permuted(rollout: Rollout, rows: Tensor, padding: int) -> Rollout:
    """The same episodes in another order, with more padding."""
    old = rollout.episodes
    episodes = Episodes(widened(old.ids[rows], padding), old.prompt_lengths[rows], widened(old.mask[rows], padding))
    names = ("response_ids", "old_logprobs", "ref_logprobs", "values", "generation_logprobs")
    tensors = {name: widened(getattr(rollout, name)[rows], padding) for name in names}
    scores = {name: tensor[rows] for name, tensor in rollout.scores_by_reward.items()}
    return replace(
        rollout,
        episodes=episodes,
        ended=rollout.ended[rows],
        scores=rollout.scores[rows],
        scores_by_reward=scores,
        **tensors,
    )


def test_mini_batches_split_the_batch_anew_in_each_epoch(world) -> None:
    run, _ = rolled_out(world, "lora", num_mini_batches=4)
    epochs = [mini_batches(run.config, 0, epoch, torch.device("cpu")) for epoch in (0, 1, 0)]
    for parts in epochs:
        assert [len(part) for part in parts] == [2, 2, 2, 2]
        assert sorted(torch.cat(parts).tolist()) == list(range(8))
    assert torch.cat(epochs[0]).tolist() != torch.cat(epochs[1]).tolist()
    assert torch.cat(epochs[0]).tolist() == torch.cat(epochs[2]).tolist()
    assert torch.cat(mini_batches(run.config, 1, 0, torch.device("cpu"))).tolist() != torch.cat(epochs[0]).tolist()


def test_the_number_of_optimizer_steps_is_epochs_times_mini_batches(world, monkeypatch) -> None:
    run, rollout = rolled_out(world, "lora", num_mini_batches=4, num_ppo_epochs=3)
    optimizer = make_optimizer(run)
    numbers: list[int] = []
    step = optimizer.step
    monkeypatch.setattr(optimizer, "step", lambda number, parts: numbers.append(number) or step(number, parts))
    update(run, optimizer, rollout, targets_of(rollout, run.config, run.config.kl_coef, Moments()), iteration=2)
    assert numbers == list(range(24, 36))


@pytest.mark.parametrize(("threshold", "share"), [(2.0, 0.0), (3.0, 1.0), (None, 1.0)])
def test_a_mini_batch_whose_mean_ratio_is_above_the_threshold_is_skipped(world, threshold, share) -> None:
    run, rollout = rolled_out(world, "lora", num_mini_batches=2, ratio_threshold=threshold)
    optimizer = make_optimizer(run)
    before = {name: parameter.detach().clone() for name, parameter in optimizer.stepped.items()}
    further = replace(rollout, old_logprobs=(rollout.old_logprobs - 1) * rollout.mask)  # a ratio of e at every token
    metrics = update(run, optimizer, further, targets_of(rollout, run.config, 0.1, Moments()), 0)
    assert metrics["updates"] == share
    assert metrics["ratio"].item() == pytest.approx(2.718, rel=0.1)
    moved = [name for name, parameter in optimizer.stepped.items() if not torch.equal(before[name], parameter)]
    assert bool(moved) == bool(share)
    assert not optimizer.gradient.any()


@pytest.mark.parametrize("gap", [0.0, 0.25])
def test_the_generation_gap_is_taken_before_the_policy_moves(world, gap) -> None:
    run, rollout = rolled_out(world, "lora", num_ppo_epochs=3)
    shifted = replace(rollout, generation_logprobs=(rollout.generation_logprobs + gap) * rollout.mask)
    metrics = update(run, make_optimizer(run), shifted, targets_of(rollout, run.config, 0.1, Moments()), 0)
    assert metrics["generation_gap"].item() == pytest.approx(gap, abs=1e-5)
    assert metrics["approx_kl"] > 1e-4  # later it has moved
