"""The mathematics of PPO for language models: pure functions of tensors.

Shapes: B episodes, R tokens of the longest response (right-padded), N response tokens in a row, of any number of
episodes. A mask [B, R] is True at response tokens, the end-of-text token included, and False at the padding after them.
Logprobs are in nats, at the sampling temperature. Terms that work token by token take any shape; N is written for it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Moments:
    """Mean and spread of all scores so far."""

    count: int = 0
    mean: float = 0.0
    sum_of_squares: float = 0.0  # of deviations from the mean

    @property
    def std(self) -> float:
        """The unbiased standard deviation; 0 before the second score."""
        return (self.sum_of_squares / max(1, self.count - 1)) ** 0.5

    def after(self, scores: Tensor) -> "Moments":
        """These moments with the scores [B] added (Chan et al. 1979, the parallel update)."""
        added, count = scores.double(), self.count + len(scores)
        delta = added.mean().item() - self.mean
        squares = (added - added.mean()).square().sum().item() + delta**2 * self.count * len(scores) / count
        return Moments(count, self.mean + delta * len(scores) / count, self.sum_of_squares + squares)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean [] of `values` [B, R] where `mask` [B, R] is True."""
    return (values * mask).sum() / mask.sum()


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor, estimator: str) -> Tensor:
    """Estimate [N] of KL(policy || reference) at tokens that the policy sampled.

    With d = logprobs - ref_logprobs: k1 = d is unbiased, k2 = d^2 / 2 is of low variance and has the gradient of the
    KL, k3 = exp(-d) - 1 + d is unbiased and never negative (Schulman 2020, "Approximating KL divergence").
    """
    difference = logprobs - ref_logprobs
    if estimator == "k1":
        return difference
    return 0.5 * difference.square() if estimator == "k2" else torch.expm1(-difference) + difference


def adapted_kl_coef(kl_coef: float, kl: float, target: float, num_episodes: int, horizon: float) -> float:
    """The KL coefficient after `num_episodes` whose KL, mean per response in nats, was `kl`.

    e = clip(kl / target - 1, -0.2, 0.2),  coef <- coef (1 + e num_episodes / horizon)
    (Ziegler et al. 2019, arXiv:1909.08593, sec. 2.2).
    """
    error = min(max(kl / target - 1, -0.2), 0.2)
    return kl_coef * (1 + error * num_episodes / horizon)


def normalised_scores(scores: Tensor, moments: Moments) -> Tensor:
    """Scores [B] less the mean, over the standard deviation."""
    return (scores - moments.mean) / (moments.std + 1e-8)


def finished_scores(scores: Tensor, ended: Tensor, penalty: float | None, replacement: float | None) -> Tensor:
    """Scores [B], where the response did not end (`ended` [B] is False) lowered by the penalty, or replaced."""
    if replacement is not None:
        return torch.where(ended, scores, replacement)
    return scores - (penalty or 0.0) * ~ended


def token_rewards(scores: Tensor, kl: Tensor, mask: Tensor, kl_coef: float) -> Tensor:
    """Rewards [B, R]: minus the KL penalty at every token, plus the score [B] at the last one; 0 at padding.

    r_t = -kl_coef * kl_t + [t is last] * score   (Ziegler et al. 2019, arXiv:1909.08593, eq. 2, per token).
    `kl` [B, R] is an estimate of KL(policy || reference).
    """
    is_last = mask & (mask.cumsum(dim=1) == mask.sum(dim=1, keepdim=True))
    return scores[:, None] * is_last - kl_coef * kl * mask


def length_adaptive_lam(mask: Tensor, alpha: float) -> Tensor:
    """GAE's lambda for each response [B]: 1 - 1 / (alpha l) for one of l tokens, and at least 0.

    The horizon 1 / (1 - lambda) grows with the response (Yue et al. 2025, VAPO, arXiv:2504.05118, sec. 4.2).
    """
    return (1 - 1 / (alpha * mask.sum(dim=1))).clamp(min=0.0)


def gae(rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, lam: float | Tensor) -> Tensor:
    """Advantages [B, R] of every response token; 0 at padding. `lam` is one number, or one for each response [B].

    delta_t = r_t + gamma V_{t+1} - V_t,   A_t = delta_t + gamma lam A_{t+1}
    (Schulman et al. 2016, arXiv:1506.02438, eq. 11 and 16). V_t is measured before token t is chosen. A response is
    a whole episode: V after its last token is 0, also where it was cut at the longest length.
    """
    rewards, values = rewards * mask, values * mask
    next_values = torch.nn.functional.pad(values[:, 1:], (0, 1))
    deltas = rewards + gamma * next_values - values
    advantage = torch.zeros_like(deltas[:, 0])
    reversed_advantages = []
    for delta in reversed(deltas.unbind(dim=1)):
        advantage = delta + gamma * lam * advantage
        reversed_advantages.append(advantage)
    return torch.stack(reversed_advantages[::-1], dim=1)


def whiten(values: Tensor, mask: Tensor, *, shift_mean: bool = True) -> Tensor:
    """`values` [B, R] scaled to variance 1 and, with `shift_mean`, to mean 0 over the counted tokens; 0 at padding.

    Given the batch of all processes: statistics of a part would make the result depend on how it was split.
    The variance is the unbiased one.
    """
    mean = masked_mean(values, mask)
    variance = ((values - mean) * mask).square().sum() / (mask.sum() - 1).clamp(min=1)
    whitened = (values - mean) * torch.rsqrt(variance + 1e-8)
    return (whitened if shift_mean else whitened + mean) * mask


def importance_weights(old_logprobs: Tensor, generation_logprobs: Tensor, cap: float) -> Tensor:
    """What a sampled token [N] counts where the engine that drew it was not quite the old policy.

    min(exp(old_logprobs - generation_logprobs), cap): truncated importance sampling (Ionides 2008; for engines that
    round otherwise: Yao et al. 2025).
    """
    return torch.exp(old_logprobs - generation_logprobs).clamp(max=cap)


def policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    cliprange: float,
    cliprange_high: float | None = None,
    dual_clip: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Loss [N] of every token, and whether a clip takes its gradient away [N] bool.

    -min(r A, clip(r, 1 - cliprange, 1 + cliprange_high) A) with r = exp(logprobs - old_logprobs)
    (Schulman et al. 2017, arXiv:1707.06347, eq. 7; the upper range by itself: Yu et al. 2025, arXiv:2503.14476).
    With dual_clip c, where A < 0, at most -c A (Ye et al. 2020, arXiv:1912.09729, eq. 5).
    """
    ratio = torch.exp(logprobs - old_logprobs)
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - cliprange, 1 + (cliprange if cliprange_high is None else cliprange_high))
    losses, is_clipped = torch.maximum(unclipped, clipped), clipped > unclipped
    if dual_clip is None:
        return losses, is_clipped
    limit = torch.where(advantages < 0, -dual_clip * advantages, torch.inf)
    return torch.minimum(losses, limit), is_clipped | (losses > limit)


def value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, cliprange_value: float | None
) -> tuple[Tensor, Tensor]:
    """Loss [N] of every token, and whether the clip takes its gradient away [N] bool.

    1/2 max((V - R)^2, (clip(V, V_old - c, V_old + c) - R)^2) with c = cliprange_value: the value function follows the
    returns at most c per rollout (OpenAI baselines' ppo2; Huang et al. 2022, "The 37 implementation details of PPO").
    Without c, 1/2 (V - R)^2.
    """
    unclipped = (values - returns).square()
    if cliprange_value is None:
        return 0.5 * unclipped, torch.zeros_like(values, dtype=torch.bool)
    clipped_values = old_values + (values - old_values).clamp(-cliprange_value, cliprange_value)
    clipped = (clipped_values - returns).square()
    return 0.5 * torch.maximum(unclipped, clipped), clipped > unclipped


def entropy(logits: Tensor) -> Tensor:
    """Entropy [N] in nats of the distributions softmax(logits), logits [N, V]."""
    logprobs = torch.log_softmax(logits.float(), dim=-1)
    return -(logprobs.exp() * logprobs).sum(dim=-1)


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """1 - Var(returns - values) / Var(returns), [] over the counted tokens: 1 is perfect, a constant gives 0."""

    def variance(terms: Tensor) -> Tensor:
        return masked_mean((terms - masked_mean(terms, mask)).square(), mask)

    return 1 - variance(returns - values) / variance(returns).clamp(min=1e-12)
