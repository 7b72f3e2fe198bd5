"""What two sets of answers are compared by: pure functions of numbers and tokens.

Letters: N prompts with one response each per model, B episodes of a batch, R response tokens.
"""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

PRIOR_DEVIATION = 10.0
NEWTON_STEPS, LONGEST_STEP = 50, 1.0


def outcomes(before: ArrayLike, after: ArrayLike) -> NDArray[np.float64]:
    """[N] 1 where `after` [N] is the higher, 0 where `before` [N] is, 1/2 for a tie; their mean is the win rate."""
    return (1 + np.sign(np.asarray(after, dtype=np.float64) - np.asarray(before, dtype=np.float64))) / 2


def sign_test(outcomes: ArrayLike) -> float:
    """Two-sided p value of the exact sign test on outcomes [N] of paired comparisons: as many wins as losses?

    Wins are above 1/2, losses below; ties say nothing and are left out (Dixon and Mood 1946). 1 where all are ties.
    """
    values = np.asarray(outcomes, dtype=np.float64)
    wins, losses = int((values > 0.5).sum()), int((values < 0.5).sum())
    num_decided = wins + losses
    tail = sum(math.comb(num_decided, k) for k in range(min(wins, losses) + 1))
    return min(1.0, 2 * tail / 2**num_decided)


def length_controlled_win_rate(outcomes: ArrayLike, lengths_before: ArrayLike, lengths_after: ArrayLike) -> float:
    """The win rate that outcomes [N] would have where both answers are equally long, by logistic regression.

    log-odds of an outcome = a + b tanh((length after - before) / its standard deviation), the win rate is sigmoid(a):
    the length term of length-controlled AlpacaEval (Dubois et al. 2024, arXiv:2404.04475). Simplified: there is no term
    for the difficulty of each prompt, which takes the answers of many models, and in place of cross-validated
    regularisation both coefficients have a normal prior of deviation 10, which only keeps them finite.
    """
    values = np.asarray(outcomes, dtype=np.float64)
    differences = np.asarray(lengths_after, dtype=np.float64) - np.asarray(lengths_before, dtype=np.float64)
    scale = differences.std() or 1.0
    inputs = np.stack([np.ones_like(values), np.tanh(differences / scale)], axis=1)
    return float(_sigmoid(_logistic_coefficients(inputs, values)[0]))


def _logistic_coefficients(inputs: NDArray[np.float64], targets: NDArray[np.float64]) -> NDArray[np.float64]:
    """Coefficients [K] of a logistic regression of targets [N] in [0, 1] on inputs [N, K], by Newton's method."""
    precision = np.eye(inputs.shape[1]) / PRIOR_DEVIATION**2
    coefficients = np.zeros(inputs.shape[1])
    for _ in range(NEWTON_STEPS):
        expected = _sigmoid(inputs @ coefficients)
        gradient = inputs.T @ (targets - expected) - precision @ coefficients
        curvature = (inputs * (expected * (1 - expected))[:, None]).T @ inputs + precision
        step = np.linalg.solve(curvature, gradient)
        coefficients = coefficients + step * min(1.0, LONGEST_STEP / max(np.abs(step).max(), 1e-12))
    return coefficients


def _sigmoid(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return 1 / (1 + np.exp(-values))


def kl_per_response(logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor) -> Tensor:
    """[B] estimate of KL(policy || reference) over whole responses, in nats: the log ratio summed over the tokens.

    Unbiased when the responses were sampled from the policy (the k1 estimator); single responses may be negative.
    logprobs, ref_logprobs: [B, R] of the sampled tokens; mask: [B, R], True up to and including the end token.
    """
    return ((logprobs - ref_logprobs) * mask).sum(dim=1)
