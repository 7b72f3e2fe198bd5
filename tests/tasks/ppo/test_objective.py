"""Rewards, advantages and what is measured of them; the losses are in test_objective_losses.py.

Expected values are worked by hand or are the definition.
"""

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from tasks.ppo.objective import (
    Moments,
    adapted_kl_coef,
    explained_variance,
    finished_scores,
    gae,
    length_adaptive_lam,
    masked_mean,
    normalised_scores,
    token_rewards,
    whiten,
)

MASK = torch.tensor([[True, True, True], [True, False, False]])


def lengths_to_mask(lengths: list[int], width: int) -> Tensor:
    return torch.arange(width) < torch.tensor(lengths)[:, None]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=5), min_size=1, max_size=5))
def test_moments_are_those_of_all_scores_in_whatever_parts_they_came(parts: list[list[float]]) -> None:
    moments = Moments()
    for part in parts:
        moments = moments.after(torch.tensor(part))
    everything = torch.tensor([score for part in parts for score in part], dtype=torch.float64)
    assert moments.count == len(everything)
    assert moments.mean == pytest.approx(everything.mean().item(), rel=1e-7, abs=1e-6)
    expected = torch.std(everything, correction=1).item() if len(everything) > 1 else 0.0
    assert moments.std == pytest.approx(expected, rel=1e-7, abs=1e-6)


def test_moments_of_four_scores_worked_by_hand() -> None:
    moments = Moments().after(torch.tensor([1.0, 2.0, 6.0])).after(torch.tensor([3.0]))
    # mean 12 / 4, deviations -2, -1, 3, 0
    assert (moments.count, moments.mean, moments.sum_of_squares) == pytest.approx((4, 3.0, 14.0))
    assert moments.std == pytest.approx(math.sqrt(14 / 3))


def test_a_lone_score_has_no_spread() -> None:
    assert Moments().std == 0.0
    assert Moments().after(torch.tensor([5.0])) == Moments(1, 5.0, 0.0)


def test_a_normalised_score_is_the_number_of_standard_deviations_from_the_mean() -> None:
    moments = Moments(count=5, mean=3.0, sum_of_squares=16.0)  # standard deviation 2
    assert_close(normalised_scores(torch.tensor([3.0, 7.0, 2.0]), moments), torch.tensor([0.0, 2.0, -0.5]))


def test_equal_scores_are_normalised_to_zero() -> None:
    scores = torch.full((3,), 0.1)
    assert normalised_scores(scores, Moments().after(scores)).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("penalty", "replacement", "unfinished"),
    [(None, None, 2.0), (1.5, None, 0.5), (0.0, None, 2.0), (None, -1.0, -1.0), (None, 0.0, 0.0)],
)
def test_only_scores_of_responses_that_did_not_end_change(
    penalty: float | None, replacement: float | None, unfinished: float
) -> None:
    scores = finished_scores(torch.tensor([2.0, 2.0]), torch.tensor([True, False]), penalty, replacement)
    assert scores.tolist() == [2.0, unfinished]


@pytest.mark.parametrize(
    ("kl", "expected"),
    [(5.5, 0.101), (4.5, 0.099), (5.0, 0.1), (20.0, 0.102), (1.0, 0.098), (-3.0, 0.098)],
)
def test_the_kl_coefficient_follows_the_error_which_is_clipped_to_a_fifth(kl: float, expected: float) -> None:
    # 0.1 (1 + e 100 / 1000) with e = 0.1, -0.1, 0, 0.2, -0.2, -0.2
    assert adapted_kl_coef(0.1, kl, target=5.0, num_episodes=100, horizon=1000.0) == pytest.approx(expected)


def test_masked_mean_leaves_padding_out() -> None:
    values = torch.tensor([[1.0, 2.0, 6.0], [3.0, 100.0, 100.0]])
    assert masked_mean(values, MASK).item() == 3.0  # (1 + 2 + 6 + 3) / 4


def test_the_score_stands_at_the_last_token_and_the_penalty_at_every_one() -> None:
    kl = torch.tensor([[0.5, -1.0, 2.0], [4.0, 9.0, 9.0]])
    rewards = token_rewards(torch.tensor([10.0, 20.0]), kl, MASK, kl_coef=0.1)
    assert_close(rewards, torch.tensor([[-0.05, 0.1, 9.8], [19.6, 0.0, 0.0]]))


def test_lambda_grows_with_the_response_and_is_never_below_zero() -> None:
    found = length_adaptive_lam(lengths_to_mask([10, 40, 100], 100), alpha=0.05)
    assert_close(found, torch.tensor([0.0, 0.5, 0.8]))  # 1 - 1 / 0.5, 1 - 1 / 2, 1 - 1 / 5


def test_gae_of_a_worked_example() -> None:
    rewards, values = torch.tensor([[1.0, 0.0, 2.0]]), torch.tensor([[0.5, 1.0, -1.0]])
    advantages = gae(rewards, values, torch.ones(1, 3, dtype=torch.bool), gamma=0.5, lam=0.5)
    # deltas: 1 + 0.5 - 0.5 = 1;  0 - 0.5 - 1 = -1.5;  2 + 0 + 1 = 3;  then A_t = delta_t + 0.25 A_{t+1}
    assert_close(advantages, torch.tensor([[1 - 0.25 * 0.75, -0.75, 3.0]]))


@pytest.mark.parametrize("lams", [[0.8, 0.8, 0.8], [0.9, 0.5, 0.0]])
def test_gae_is_the_double_sum_of_its_definition_with_a_lambda_for_each_response(lams: list[float]) -> None:
    torch.manual_seed(0)
    lengths, gamma = [5, 3, 1], 0.9
    rewards, values = torch.randn(2, 3, 5, dtype=torch.float64)
    expected = torch.zeros(3, 5, dtype=torch.float64)
    for row, (length, lam) in enumerate(zip(lengths, lams, strict=True)):
        value = [*values[row, :length].tolist(), 0.0]
        deltas = [rewards[row, t].item() + gamma * after - now for t, (now, after) in enumerate(pairwise(value))]
        for t in range(length):
            expected[row, t] = sum((gamma * lam) ** k * delta for k, delta in enumerate(deltas[t:]))
    lam = torch.tensor(lams, dtype=torch.float64) if len(set(lams)) > 1 else lams[0]
    assert_close(gae(rewards, values, lengths_to_mask(lengths, 5), gamma=gamma, lam=lam), expected)


def test_with_lambda_one_advantages_are_discounted_rewards_less_the_value() -> None:
    rewards, values = torch.tensor([[0.0, 0.0, 8.0]]), torch.tensor([[3.0, 1.0, 2.0]])
    advantages = gae(rewards, values, torch.ones(1, 3, dtype=torch.bool), gamma=0.5, lam=1.0)
    assert_close(advantages, torch.tensor([[2.0 - 3, 4.0 - 1, 8.0 - 2]]))


@pytest.mark.parametrize(("shift_mean", "mean_after"), [(True, 0.0), (False, 3.0)])
def test_whitened_values_have_unbiased_variance_one_and_lose_their_mean_if_asked(
    shift_mean: bool, mean_after: float
) -> None:
    values = torch.tensor([[1.0, 2.0, 6.0], [3.0, 100.0, -100.0]])
    # mean 3, deviations -2, -1, 3, 0: sum of squares 14, over 4 - 1
    deviations = torch.tensor([[-2.0, -1.0, 3.0], [0.0, 0.0, 0.0]]) / math.sqrt(14 / 3)
    assert_close(whiten(values, MASK, shift_mean=shift_mean), (deviations + mean_after) * MASK)


def test_values_are_shifted_unless_asked_otherwise() -> None:
    values = torch.tensor([[1.0, 2.0, 6.0], [3.0, 0.0, 0.0]])
    assert_close(whiten(values, MASK), whiten(values, MASK, shift_mean=True))


def test_whitening_a_single_token_gives_zero() -> None:
    assert whiten(torch.tensor([[7.0]]), torch.ones(1, 1, dtype=torch.bool)).item() == 0.0


def test_explained_variance_is_one_for_a_perfect_and_zero_for_a_constant_value() -> None:
    returns = torch.tensor([[1.0, 2.0, 6.0], [3.0, 50.0, 50.0]])
    noise = torch.tensor([[0.0, 0.0, 0.0], [0.0, 9.0, -9.0]])
    assert explained_variance(returns + noise, returns, MASK).item() == pytest.approx(1.0)
    assert explained_variance(noise + 4, returns, MASK).item() == pytest.approx(0.0, abs=1e-6)
    # errors are the returns themselves with the other sign, then twice the returns: four times the variance
    assert explained_variance(2 * returns, returns, MASK).item() == pytest.approx(0.0, abs=1e-6)
    assert explained_variance(-returns, returns, MASK).item() == pytest.approx(-3.0)


def test_explained_variance_of_equal_returns_is_a_number() -> None:
    assert explained_variance(torch.ones(2, 3), torch.ones(2, 3), MASK).item() == 1.0
    assert math.isfinite(explained_variance(torch.randn(2, 3), torch.ones(2, 3), MASK).item())


PADDED: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "masked_mean": lambda x, y, mask: masked_mean(x, mask),
    "token_rewards": lambda x, y, mask: token_rewards(x[:, 0], y, mask, 0.3),
    "length_adaptive_lam": lambda x, y, mask: length_adaptive_lam(mask, 0.7),
    "gae": lambda x, y, mask: gae(x, y, mask, gamma=0.9, lam=0.8),
    "gae of a lambda each": lambda x, y, mask: gae(x, y, mask, gamma=0.9, lam=y[:, 0]),
    "whiten": lambda x, y, mask: whiten(x, mask),
    "whiten keeping the mean": lambda x, y, mask: whiten(x, mask, shift_mean=False),
    "explained_variance": lambda x, y, mask: explained_variance(x, y, mask),
}


@pytest.mark.parametrize("name", PADDED)
@settings(max_examples=20, deadline=None)
@given(lengths=st.lists(st.integers(1, 6), min_size=2, max_size=5), more=st.integers(0, 3), seed=st.integers(0, 99))
def test_padding_never_changes_anything_and_holds_zeros(name: str, lengths: list[int], more: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    longest, function = max(lengths), PADDED[name]
    tight, wide = lengths_to_mask(lengths, longest), lengths_to_mask(lengths, longest + more)
    x, y = torch.randn(2, *wide.shape, generator=generator, dtype=torch.float64).masked_fill(~wide, 1e6)
    expected = function(x[:, :longest].masked_fill(~tight, 0.0), y[:, :longest].masked_fill(~tight, 0.0), tight)
    found = function(x, y, wide)
    if found.dim() < 2:
        assert_close(found, expected)
    else:
        assert_close(found[wide], expected[tight])
        assert not found[~wide].any()
