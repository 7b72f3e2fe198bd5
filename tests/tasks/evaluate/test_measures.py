import itertools
import math

import numpy as np
import pytest
import torch

from tasks.evaluate.measures import (
    kl_per_response,
    length_controlled_win_rate,
    outcomes,
    sign_test,
)


def test_a_tie_counts_as_half_a_win():
    before = [1.0, 2.0, 3.0, 4.0]
    after = [2.0, 2.0, 1.0, 5.0]  # win, tie, loss, win

    assert outcomes(before, after).tolist() == [1.0, 0.5, 0.0, 1.0]
    assert outcomes(before, after).mean() == 2.5 / 4


def test_kl_of_a_response_sums_the_log_ratio_of_its_own_tokens_only():
    logprobs = torch.tensor([[-1.0, -2.0, -5.0], [-1.0, -1.0, -1.0]])
    ref_logprobs = torch.tensor([[-1.5, -3.0, -100.0], [-0.5, -1.0, -2.0]])
    mask = torch.tensor([[True, True, False], [True, True, True]])

    assert kl_per_response(logprobs, ref_logprobs, mask).tolist() == [0.5 + 1.0, -0.5 + 0.0 + 1.0]


def test_the_mean_over_the_policys_own_samples_is_the_kl_of_whole_responses():
    """All 3 ** 3 responses of a vocabulary of 3 are enumerated, each token's distribution hanging on the one before."""
    policy, reference = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    responses = list(itertools.product(range(3), repeat=3))
    previous = torch.tensor([(3, *response[:-1]) for response in responses])
    tokens = torch.tensor(responses)
    logprobs, ref_logprobs = policy[previous, tokens], reference[previous, tokens]
    probabilities = [math.exp(row.sum()) for row in logprobs]
    definition = sum(
        p * (math.log(p) - math.log(math.exp(row.sum()))) for p, row in zip(probabilities, ref_logprobs, strict=True)
    )

    per_response = kl_per_response(logprobs, ref_logprobs, torch.ones(27, 3, dtype=torch.bool))

    assert sum(probabilities) == pytest.approx(1, abs=1e-6)
    assert float((torch.tensor(probabilities) * per_response).sum()) == pytest.approx(definition, abs=1e-6)
    assert definition > 0.1


def test_the_sign_test_counts_the_coin_tosses_that_are_as_extreme():
    # 5 wins, 1 loss, 2 ties: 2 (C(6,0) + C(6,1)) / 2**6 = 14 / 64
    assert sign_test([1, 1, 1, 0.5, 1, 1, 0, 0.5]) == 14 / 64
    assert sign_test([1, 0]) == 1.0
    assert sign_test([0.5, 0.5]) == 1.0
    assert sign_test([0.75, 0.75, 1, 1]) == 2 / 2**4
    assert sign_test([1.0] * 500) == pytest.approx(2.0**-499)


def test_the_length_controlled_win_rate_takes_the_share_that_length_explains():
    """Outcomes drawn from the model itself: log-odds a + b tanh(difference / deviation), a = logit(0.6), b = 3."""
    generator = np.random.default_rng(0)
    differences = generator.normal(2.0, 4.0, size=20000)
    odds = math.log(0.6 / 0.4) + 3 * np.tanh(differences / differences.std())
    won = (generator.random(20000) < 1 / (1 + np.exp(-odds))).astype(float)

    controlled = length_controlled_win_rate(won, np.zeros(20000), differences)

    assert won.mean() > 0.68
    assert controlled == pytest.approx(0.6, abs=0.02)


def test_without_a_difference_in_length_the_win_rate_stays():
    lengths = np.full(40, 7.0)
    assert length_controlled_win_rate([1] * 30 + [0] * 10, lengths, lengths) == pytest.approx(0.75, abs=1e-3)
    assert length_controlled_win_rate([1] * 40, lengths, lengths) > 0.99
    assert length_controlled_win_rate([1, 0] * 20, lengths, lengths + 3) == pytest.approx(0.5, abs=1e-6)
