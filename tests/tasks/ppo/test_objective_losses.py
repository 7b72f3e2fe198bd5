"""The KL estimates and the terms of the loss; rewards and advantages are in test_objective.py.

Expected values are worked by hand, or are the definition, or come from finite differences.
"""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from tasks.ppo.objective import entropy, kl_estimate, policy_loss, value_loss

POLICY = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
REFERENCE = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)


def slopes(function: Callable[[Tensor], Tensor], point: Tensor, width: float = 1e-6) -> Tensor:
    """The gradient [N] of `function` at `point` [N], by central differences."""
    steps = width * torch.eye(len(point), dtype=point.dtype)
    return torch.stack([(function(point + step) - function(point - step)) / (2 * width) for step in steps])


def gradient(function: Callable[[Tensor], Tensor], point: Tensor) -> Tensor:
    variable = point.clone().requires_grad_()
    return torch.autograd.grad(function(variable), variable)[0]


@pytest.mark.parametrize(("estimator", "expected"), [("k1", [1.0, -2.0]), ("k2", [0.5, 2.0])])
def test_k1_is_the_difference_of_the_logprobs_and_k2_half_its_square(estimator: str, expected: list[float]) -> None:
    logprobs, ref_logprobs = torch.tensor([-1.0, -3.0]), torch.tensor([-2.0, -1.0])
    assert kl_estimate(logprobs, ref_logprobs, estimator).tolist() == expected


def test_k3_of_two_tokens_worked_by_hand() -> None:
    found = kl_estimate(torch.tensor([-1.0, -3.0]), torch.tensor([-2.0, -1.0]), "k3")
    # reference / policy is e^-1 and e^2: e^-1 - 1 + 1 and e^2 - 1 - 2
    assert_close(found, torch.tensor([math.exp(-1), math.exp(2) - 3]))


def test_k3_keeps_its_digits_where_the_models_hardly_differ() -> None:
    found = kl_estimate(torch.tensor([1e-3]), torch.zeros(1), "k3").item()
    assert found == pytest.approx(1e-6 / 2 - 1e-9 / 6, rel=2e-3)  # the series of e^-d - 1 + d


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_k1_and_k3_have_the_kl_of_the_distributions_as_their_mean(estimator: str) -> None:
    exact = sum(p * math.log(p / q) for p, q in zip(POLICY.tolist(), REFERENCE.tolist(), strict=True))
    assert (POLICY * kl_estimate(POLICY.log(), REFERENCE.log(), estimator)).sum().item() == pytest.approx(exact)


def test_as_a_loss_k1_pulls_nowhere_k2_down_the_kl_and_k3_down_the_kl_the_other_way_round() -> None:
    def kl(first: Tensor, second: Tensor) -> Tensor:
        return (first * (first.log() - second.log())).sum()

    expected = {
        "k1": torch.zeros_like(POLICY),
        "k2": slopes(lambda logits: kl(logits.softmax(0), REFERENCE), POLICY.log()),
        "k3": slopes(lambda logits: kl(REFERENCE, logits.softmax(0)), POLICY.log()),
    }
    for estimator, pull in expected.items():
        mean_pull = gradient(
            lambda logits, name=estimator: (POLICY * kl_estimate(logits.log_softmax(0), REFERENCE.log(), name)).sum(),
            POLICY.log(),
        )
        assert_close(mean_pull, pull, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_the_gradient_of_each_kl_estimate_is_that_of_finite_differences(estimator: str) -> None:
    torch.manual_seed(0)
    logprobs, ref_logprobs = torch.randn(2, 20, dtype=torch.float64)

    def total(point: Tensor) -> Tensor:
        return kl_estimate(point, ref_logprobs, estimator).sum()

    assert_close(gradient(total, logprobs), slopes(total, logprobs), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("ratio", "advantage", "ranges", "loss", "clipped"),
    [
        (1.0, 2.0, {}, -2.0, False),
        (1.5, 2.0, {}, -2.4, True),  # min(3, 1.2 * 2)
        (0.5, 2.0, {}, -1.0, False),  # min(1, 0.8 * 2): pulled back without a limit
        (1.5, -2.0, {}, 3.0, False),  # min(-3, -2.4)
        (0.5, -2.0, {}, 1.6, True),  # min(-1, -1.6)
        (1.25, 2.0, {"cliprange_high": 0.3}, -2.5, False),  # below 1.3
        (1.5, 2.0, {"cliprange_high": 0.3}, -2.6, True),
        (0.5, -2.0, {"cliprange_high": 0.3}, 1.6, True),  # the lower range stays 0.2
        (2.5, -2.0, {"dual_clip": 3.0}, 5.0, False),
        (4.0, -2.0, {"dual_clip": 3.0}, 6.0, True),  # at most 3 * 2
        (0.5, -2.0, {"dual_clip": 3.0}, 1.6, True),
        (4.0, 2.0, {"dual_clip": 3.0}, -2.4, True),  # only where the advantage is negative
        (0.5, 2.0, {"dual_clip": 3.0}, -1.0, False),
        (4.0, 0.0, {"dual_clip": 3.0}, 0.0, False),
    ],
)
def test_policy_loss_in_each_case_of_the_clips(
    ratio: float, advantage: float, ranges: dict[str, float], loss: float, clipped: bool
) -> None:
    old = torch.tensor([-1.3])
    losses, is_clipped = policy_loss(old + math.log(ratio), old, torch.tensor([advantage]), 0.2, **ranges)
    assert_close(losses, torch.tensor([loss]))
    assert is_clipped.tolist() == [clipped]


@pytest.mark.parametrize(
    ("value", "returns", "cliprange_value", "loss", "clipped"),
    [
        (1.1, 2.0, 0.2, 0.5 * 0.9**2, False),
        (1.5, 2.0, 0.2, 0.5 * 0.8**2, True),  # counts as 1.2
        (0.5, 2.0, 0.2, 0.5 * 1.5**2, False),  # clipped to 0.8 it would look better than it is
        (1.5, 0.0, 0.2, 0.5 * 1.5**2, False),
        (0.5, 0.0, 0.2, 0.5 * 0.8**2, True),
        (1.5, 2.0, None, 0.5 * 0.5**2, False),
    ],
)
def test_value_loss_in_each_case_of_the_clip(
    value: float, returns: float, cliprange_value: float | None, loss: float, clipped: bool
) -> None:
    old = torch.tensor([1.0])
    losses, is_clipped = value_loss(torch.tensor([value]), old, torch.tensor([returns]), cliprange_value)
    assert_close(losses, torch.tensor([loss]))
    assert is_clipped.tolist() == [clipped]
    assert is_clipped.dtype == torch.bool


GRADIENTS: dict[str, tuple[Callable[..., tuple[Tensor, Tensor]], dict[str, Any], float]] = {
    "policy": (policy_loss, {"cliprange": 0.2}, 0.4),
    "policy, more room upwards": (policy_loss, {"cliprange": 0.1, "cliprange_high": 0.5}, 0.4),
    "policy, dual clip": (policy_loss, {"cliprange": 0.2, "dual_clip": 1.5}, 0.8),
    "value": (value_loss, {"cliprange_value": 0.2}, 0.4),
    "value, not clipped": (value_loss, {"cliprange_value": None}, 0.4),
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_are_those_of_finite_differences_and_none_where_clipped(name: str) -> None:
    loss, options, spread = GRADIENTS[name]
    torch.manual_seed(0)
    old, target, noise = torch.randn(3, 60, dtype=torch.float64)

    def both(point: Tensor) -> tuple[Tensor, Tensor]:
        return loss(point, old, target, **options)

    new = old + spread * noise
    found, clipped = gradient(lambda point: both(point)[0].sum(), new), both(new)[1]
    assert_close(found, slopes(lambda point: both(point)[0].sum(), new), rtol=1e-5, atol=1e-7)
    assert (clipped.sum() == 0) if None in options.values() else (5 < clipped.sum() < 55)
    assert not found[clipped].any()
    assert found[~clipped].all()


def test_entropy_of_three_distributions_worked_by_hand() -> None:
    quarters, halves = [0.25, 0.25, 0.25, 0.25], [0.5, 0.25, 0.125, 0.125]
    logits = torch.tensor([quarters, halves, [1.0, 1e-30, 1e-30, 1e-30]]).log() + 7  # a constant changes nothing
    assert_close(entropy(logits), torch.tensor([2.0, 1.75, 0.0]) * math.log(2))


def test_entropy_of_bfloat16_logits_is_computed_in_float32() -> None:
    torch.manual_seed(0)
    logits = (5 * torch.randn(4, 50)).bfloat16()
    found = entropy(logits)
    assert found.dtype == torch.float32
    exact = torch.distributions.Categorical(logits=logits.double()).entropy()
    assert_close(found.double(), exact, rtol=1e-5, atol=1e-6)


def test_the_gradient_of_entropy_is_that_of_finite_differences() -> None:
    torch.manual_seed(0)
    logits = 2 * torch.randn(12)
    expected = slopes(lambda point: entropy(point[None])[0], logits, width=1e-2)  # in float32: a wide step
    assert_close(gradient(lambda point: entropy(point[None])[0], logits), expected, rtol=1e-2, atol=2e-4)
