"""Expected values are worked by hand, or are the definition, or come from finite differences."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from tasks.ppo.objective import (
    explained_variance,
    gae,
    kl_k3,
    masked_mean,
    penalised_scores,
    policy_loss,
    token_rewards,
    value_loss,
    whiten,
)

MASK = torch.tensor([[True, True, True], [True, False, False]])


def test_masked_mean_leaves_padding_out() -> None:
    values = torch.tensor([[1.0, 2.0, 6.0], [3.0, 100.0, 100.0]])
    assert masked_mean(values, MASK).item() == 3.0  # (1 + 2 + 6 + 3) / 4


def test_both_kl_estimators_have_the_kl_of_the_distributions_as_their_mean() -> None:
    policy = torch.tensor([0.5, 0.3, 0.15, 0.05])
    reference = torch.tensor([0.1, 0.2, 0.3, 0.4])
    exact = sum(p * math.log(p / q) for p, q in zip(policy.tolist(), reference.tolist(), strict=True))
    k1 = policy.log() - reference.log()
    assert_close((policy * k1).sum().item(), exact, rtol=1e-6, atol=1e-6)
    assert_close((policy * kl_k3(policy.log(), reference.log())).sum().item(), exact, rtol=1e-6, atol=1e-6)


def test_k3_is_never_negative_and_has_this_value() -> None:
    logprobs, ref_logprobs = torch.tensor([-1.0, -3.0]), torch.tensor([-2.0, -1.0])
    # reference / policy is e^-1 and e^2: e^-1 - 1 + 1 and e^2 - 1 - 2
    assert_close(kl_k3(logprobs, ref_logprobs), torch.tensor([math.exp(-1), math.exp(2) - 3]))


def test_only_responses_that_did_not_end_are_penalised() -> None:
    scores = penalised_scores(torch.tensor([2.0, 2.0]), torch.tensor([True, False]), 1.5)
    assert scores.tolist() == [2.0, 0.5]


def test_the_score_stands_at_the_last_token_and_the_penalty_at_every_one() -> None:
    kl = torch.tensor([[0.5, -1.0, 2.0], [4.0, 9.0, 9.0]])
    rewards = token_rewards(torch.tensor([10.0, 20.0]), kl, MASK, kl_coef=0.1)
    assert_close(rewards, torch.tensor([[-0.05, 0.1, 9.8], [19.6, 0.0, 0.0]]))


def test_gae_of_a_worked_example() -> None:
    rewards, values = torch.tensor([[1.0, 0.0, 2.0]]), torch.tensor([[0.5, 1.0, -1.0]])
    advantages = gae(rewards, values, torch.ones(1, 3, dtype=torch.bool), gamma=0.5, lam=0.5)
    # deltas: 1 + 0.5 - 0.5 = 1;  0 - 0.5 - 1 = -1.5;  2 + 0 + 1 = 3;  then A_t = delta_t + 0.25 A_{t+1}
    assert_close(advantages, torch.tensor([[1 - 0.25 * 0.75, -0.75, 3.0]]))


def test_gae_is_the_double_sum_of_its_definition() -> None:
    torch.manual_seed(0)
    lengths, gamma, lam = [5, 3, 1], 0.9, 0.8
    mask = torch.arange(5) < torch.tensor(lengths)[:, None]
    rewards, values = torch.randn(3, 5), torch.randn(3, 5)  # what stands at padding must not matter
    expected = torch.zeros(3, 5)
    for row, length in enumerate(lengths):
        value = [*values[row, :length].tolist(), 0.0]
        deltas = [rewards[row, t].item() + gamma * after - now for t, (now, after) in enumerate(pairwise(value))]
        for t in range(length):
            expected[row, t] = sum((gamma * lam) ** k * delta for k, delta in enumerate(deltas[t:]))
    assert_close(gae(rewards, values, mask, gamma=gamma, lam=lam), expected)


def test_with_lambda_one_advantages_are_discounted_rewards_less_the_value() -> None:
    rewards, values = torch.tensor([[0.0, 0.0, 8.0]]), torch.tensor([[3.0, 1.0, 2.0]])
    advantages = gae(rewards, values, torch.ones(1, 3, dtype=torch.bool), gamma=0.5, lam=1.0)
    assert_close(advantages, torch.tensor([[2.0 - 3, 4.0 - 1, 8.0 - 2]]))


def test_whitened_values_have_mean_zero_and_unbiased_variance_one_and_padding_is_zero() -> None:
    values = torch.tensor([[1.0, 2.0, 6.0], [3.0, 100.0, -100.0]])
    # mean 3, deviations -2, -1, 3, 0: sum of squares 14, over 4 - 1
    scale = math.sqrt(14 / 3)
    expected = torch.tensor([[-2 / scale, -1 / scale, 3 / scale], [0.0, 0.0, 0.0]])
    assert_close(whiten(values, MASK), expected)


def test_whitening_a_single_token_gives_zero() -> None:
    assert whiten(torch.tensor([[7.0]]), torch.ones(1, 1, dtype=torch.bool)).item() == 0.0


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "clipped"),
    [
        (1.0, 2.0, -2.0, False),
        (1.5, 2.0, -2.4, True),  # min(3, 1.2 * 2)
        (0.5, 2.0, -1.0, False),  # min(1, 0.8 * 2): pulled back without a limit
        (1.5, -2.0, 3.0, False),  # min(-3, -2.4)
        (0.5, -2.0, 1.6, True),  # min(-1, -1.6)
    ],
)
def test_policy_loss_in_each_case_of_the_clip(ratio: float, advantage: float, loss: float, clipped: bool) -> None:
    old = torch.tensor([-1.3])
    losses, is_clipped = policy_loss(old + math.log(ratio), old, torch.tensor([advantage]), 0.2)
    assert_close(losses, torch.tensor([loss]))
    assert is_clipped.tolist() == [clipped]


@pytest.mark.parametrize(
    ("value", "returns", "loss", "clipped"),
    [
        (1.1, 2.0, 0.5 * 0.9**2, False),
        (1.5, 2.0, 0.5 * 0.8**2, True),  # counts as 1.2
        (0.5, 2.0, 0.5 * 1.5**2, False),  # clipped to 0.8 it would look better than it is
        (1.5, 0.0, 0.5 * 1.5**2, False),
        (0.5, 0.0, 0.5 * 0.8**2, True),
    ],
)
def test_value_loss_in_each_case_of_the_clip(value: float, returns: float, loss: float, clipped: bool) -> None:
    losses, is_clipped = value_loss(torch.tensor([value]), torch.tensor([1.0]), torch.tensor([returns]), 0.2)
    assert_close(losses, torch.tensor([loss]))
    assert is_clipped.tolist() == [clipped]


def test_gradients_are_those_of_finite_differences_and_none_where_clipped() -> None:
    torch.manual_seed(0)
    old, advantages, returns = torch.randn(3, 40, dtype=torch.float64).unbind()
    new = old + 0.4 * torch.randn(40, dtype=torch.float64)
    _, policy_clipped = policy_loss(new, old, advantages, 0.2)
    _, value_clipped = value_loss(new, old, returns, 0.2)
    assert 5 < policy_clipped.sum() < 35
    assert 5 < value_clipped.sum() < 35
    for clipped, loss in (
        (policy_clipped, lambda x: policy_loss(x, old, advantages, 0.2)[0].sum()),
        (value_clipped, lambda x: value_loss(x, old, returns, 0.2)[0].sum()),
    ):
        variable = new.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(variable), variable)
        assert_close(gradient, _finite_differences(loss, new), rtol=1e-5, atol=1e-7)
        assert not gradient[clipped].any()
        assert gradient[~clipped].all()


def test_explained_variance_is_one_for_a_perfect_and_zero_for_a_constant_value() -> None:
    returns = torch.tensor([[1.0, 2.0, 6.0], [3.0, 50.0, 50.0]])
    noise = torch.tensor([[0.0, 0.0, 0.0], [0.0, 9.0, -9.0]])
    assert_close(explained_variance(returns + noise, returns, MASK).item(), 1.0)
    assert_close(explained_variance(noise + 4, returns, MASK).item(), 0.0)
    # errors 1, 2, 6, 3 less 2 times themselves: the variance of the error is that of the returns
    assert_close(explained_variance(2 * returns, returns, MASK).item(), 0.0)
    assert_close(explained_variance(-returns, returns, MASK).item(), -3.0)


def _finite_differences(function: object, point: Tensor, width: float = 1e-6) -> Tensor:
    slopes = []
    for index in range(len(point)):
        step = torch.zeros_like(point)
        step[index] = width
        slopes.append((function(point + step) - function(point - step)) / (2 * width))  # type: ignore[operator]
    return torch.stack(slopes)
