"""Where we differ on purpose from TRL 1.12.0's PPOTrainer: what it did in a recorded run, beside what ours does.

Each difference is shown to be the whole difference: with it undone, the numbers are equal to 1e-5.
Shapes: B episodes, R response tokens.
"""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from tasks.ppo.config import PPOConfig
from tasks.ppo.objective import Moments, gae, kl_estimate, token_rewards, whiten
from tasks.ppo.targets import targets_of
from tasks.ppo.train import make_optimizer
from tasks.ppo.update import mini_batches, update
from tests.parity.compare import gradients, mean_policy_loss, mean_value_loss
from tests.parity.iteration import rolled_out
from tests.parity.recorded import CLOSE, Recorded, description, language_model, recorded, scalar_model, tensors

EARLY_RUNS = ["early", "early_k3_whitened"]


def our_rewards(run: Recorded) -> Tensor:
    """Rewards [B, R] before whitening, from TRL's logprobs and scores."""
    kl = kl_estimate(run["logprobs"], run["ref_logprobs"], run.settings["kl_estimator"])
    return token_rewards(run["scores"], kl, run.mask, run.settings["kl_coef"])


def our_advantages(run: Recorded, rewards: Tensor, mask: Tensor) -> Tensor:
    return gae(rewards, run["values"], mask, gamma=run.settings["gamma"], lam=run.settings["lam"])


def step_after_the_end(run: Recorded) -> Tensor:
    """[B, R] True at the one position after each response that is shorter than R: TRL's episodes go on until there."""
    return (torch.arange(run.mask.shape[1]) == run["sequence_lengths"][:, None] + 1) & ~run.mask


@pytest.mark.parametrize("name", EARLY_RUNS)
def test_trl_places_the_score_one_position_after_an_early_end_and_we_at_the_end(name: str) -> None:
    run = recorded(name)
    after = step_after_the_end(run)
    theirs = run["rewards_before_whitening" if run.settings["whiten_rewards"] else "rewards"]
    assert after.sum() == 3
    assert_close(theirs[after], run["scores"][after.any(dim=1)], **CLOSE)
    moved_back = torch.where(after, 0.0, theirs) + torch.where(after, theirs, 0.0).roll(-1, dims=1)
    assert_close(our_rewards(run), moved_back, **CLOSE)


def test_trl_keeps_a_value_after_the_end_and_ours_is_zero_there() -> None:
    run = recorded("early")
    gamma, lam = run.settings["gamma"], run.settings["lam"]
    after = step_after_the_end(run)
    value, score = run["values"][after], run["scores"][after.any(dim=1)]
    assert value.all()
    # At the end the target is gamma V' + gamma lam (score - V') there, and the score here; before it, discounted.
    at_the_end = gamma * value + gamma * lam * (score - value) - score
    distance = run["sequence_lengths"][:, None] - torch.arange(run.mask.shape[1])
    expected = torch.zeros(run.mask.shape)
    expected[after.any(dim=1)] = at_the_end[:, None] * (gamma * lam) ** distance[after.any(dim=1)]
    difference = run["advantages"] - our_advantages(run, our_rewards(run), run.mask)
    assert_close(difference[run.mask], expected[run.mask], **CLOSE)
    assert difference[run.mask].abs().max() > 0.5


@pytest.mark.parametrize("name", EARLY_RUNS)
def test_with_the_step_after_the_end_as_a_token_our_advantages_are_trls(name: str) -> None:
    run = recorded(name)
    with_step = run.mask | step_after_the_end(run)
    advantages = our_advantages(run, run["rewards"], with_step)
    assert_close(advantages[with_step], run["advantages"][with_step], **CLOSE)
    assert_close((advantages + run["values"])[with_step], run["returns"][with_step], **CLOSE)
    assert_close(whiten(advantages, run.mask), run["micro_batch_0.whitened_advantages"], **CLOSE)


@pytest.mark.parametrize("name", EARLY_RUNS)
def test_trl_trains_the_value_after_the_end_too(name: str) -> None:
    run, policy, value = recorded(name), language_model("policy"), scalar_model("value")
    policy_mean = mean_policy_loss(run, policy)
    value_mean = mean_value_loss(run, value, run.mask | step_after_the_end(run))
    assert_close(policy_mean, run["micro_batch_0.policy_loss"], **CLOSE)
    assert_close(value_mean, run["micro_batch_0.value_loss"], **CLOSE)
    assert abs(mean_value_loss(run, value) - value_mean) > 0.005
    (policy_mean + run.settings["vf_coef"] * value_mean).backward()
    assert_close(*gradients(policy, run, 0, "policy"), **CLOSE)
    assert_close(*gradients(value, run, 0, "value"), **CLOSE)


def test_trl_whitens_rewards_with_the_step_after_the_end_among_them() -> None:
    run = recorded("early_k3_whitened")
    before, with_step = run["rewards_before_whitening"], run.mask | step_after_the_end(run)
    assert_close(whiten(before, with_step, shift_mean=False), run["rewards"], **CLOSE)
    ours = whiten(our_rewards(run), run.mask, shift_mean=False)
    assert (ours - run["rewards"])[run.mask].abs().max() > 0.01


def test_trl_whitens_each_process_by_itself_and_we_the_whole_batch() -> None:
    names = [f"two_processes.rank_{rank}" for rank in (0, 1)]
    advantages = [tensors()[f"{name}.advantages"] for name in names]
    theirs = [tensors()[f"{name}.whitened_advantages"] for name in names]
    ends = [tensors()[f"{name}.sequence_lengths"][:, None] for name in names]
    masks = [torch.arange(12) <= end for end in ends]
    for part, mask, whitened in zip(advantages, masks, theirs, strict=True):
        assert_close(whiten(part, mask), whitened, **CLOSE)
    whole = whiten(torch.cat(advantages), torch.cat(masks))
    assert (whole - torch.cat(theirs)).abs().max() > 0.1


def test_trl_weighs_micro_batches_alike_and_we_tokens(tmp_path: Path) -> None:
    run = recorded("early_micro_batches")
    theirs = [run[f"micro_batch_{index}.policy_loss"] for index in range(4)]
    rows = [run[f"micro_batch_{index}.rows"] for index in range(4)]
    num_tokens = torch.stack([run.mask[part].sum() for part in rows])
    assert len(set(num_tokens.tolist())) > 1
    token_mean = (torch.stack(theirs) * num_tokens).sum() / num_tokens.sum()
    assert_close(token_mean, recorded("early")["micro_batch_0.policy_loss"], **CLOSE)
    assert_close(torch.stack(theirs).mean().item(), run.logged["loss/policy_avg"], **CLOSE)
    assert abs(run.logged["loss/policy_avg"] - token_mean) > 0.01
    ours, rollout = rolled_out(run, tmp_path, micro_batch_tokens=20)
    aims = targets_of(rollout, ours.config, ours.config.kl_coef, Moments())
    aims = replace(aims, advantages=run["micro_batch_0.whitened_advantages"])
    assert_close(update(ours, make_optimizer(ours), rollout, aims, 0)["policy_loss"], token_mean, **CLOSE)


def test_trls_optimizer_steps_follow_its_micro_batches_and_ours_the_mini_batches() -> None:
    counted = [tuple(epoch.values()) for epoch in description()["optimizer_steps"]]
    assert counted == [  # rows of a micro-batch, accumulated, mini-batches, the last batch of the prompts; steps
        (8, 1, 1, False, 1),
        (8, 1, 4, False, 4),
        (2, 4, 1, False, 1),
        (2, 4, 4, False, 1),  # mini-batches are accumulated like micro-batches
        (4, 2, 4, False, 2),
        (8, 1, 1, True, 1),
        (8, 1, 4, True, 4),
        (2, 4, 1, True, 4),  # at the end of the data nothing is accumulated
        (2, 4, 4, True, 4),
        (4, 2, 4, True, 4),
    ]
    for num_mini_batches in (1, 4):
        config = PPOConfig(batch_size=8, num_mini_batches=num_mini_batches)
        assert len(mini_batches(config, 0, 0, torch.device("cpu"))) == num_mini_batches


def test_trl_never_shortens_gradients_and_we_do(tmp_path: Path) -> None:
    run = recorded("full")
    limit = run.settings["max_grad_norm"]
    parts = [
        torch.cat([gradient.flatten() for gradient in run.gradients(0, part).values()]) for part in ("policy", "value")
    ]
    assert torch.cat(parts).norm() > 5 * limit
    ours, rollout = rolled_out(run, tmp_path, max_grad_norm=limit, num_ppo_epochs=1)
    optimizer = make_optimizer(ours)
    metrics = update(ours, optimizer, rollout, targets_of(rollout, ours.config, ours.config.kl_coef, Moments()), 0)
    for part, theirs in zip(("policy", "value"), parts, strict=True):
        assert_close(metrics[f"{part}_grad_norm"], theirs.norm(), **CLOSE)
        used = [
            moment.flatten() / (1 - ours.config.adam_beta1)  # Adam's first mean of gradients is (1 - beta) gradient
            for name, moment in optimizer.state().items()
            if name.startswith(f"exp_avg.{part}.")
        ]
        assert_close(torch.cat(used).norm().item(), min(limit, theirs.norm().item()), rtol=1e-4, atol=0.0)
