"""The mathematics of PPO for language models: pure functions of tensors.

Shapes: B episodes, R tokens of the longest response (right-padded), N response tokens in a row, of any number of
episodes. A mask [B, R] is True at response tokens, the end-of-text token included, and False at the padding after them.
Logprobs are in nats, at the sampling temperature. Terms that work token by token take any shape; N is written for it.
"""

import torch
from torch import Tensor


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean [] of `values` [B, R] where `mask` [B, R] is True."""
    return (values * mask).sum() / mask.sum()


def kl_k3(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Estimate [N] >= 0 of KL(policy || reference) at tokens that the policy sampled.

    r - 1 - log r with r = reference / policy: unbiased like k1 = -log r, and of lower variance
    (Schulman 2020, "Approximating KL divergence").
    """
    log_ratio = ref_logprobs - logprobs
    return torch.expm1(log_ratio) - log_ratio


def penalised_scores(scores: Tensor, ended: Tensor, missing_eos_penalty: float) -> Tensor:
    """Scores [B], lowered by the penalty where the response did not end by itself (`ended` [B] is False)."""
    return scores - missing_eos_penalty * ~ended


def token_rewards(scores: Tensor, kl: Tensor, mask: Tensor, kl_coef: float) -> Tensor:
    """Rewards [B, R]: minus the KL penalty at every token, plus the score [B] at the last one; 0 at padding.

    r_t = -kl_coef * kl_t + [t is last] * score   (Ziegler et al. 2019, arXiv:1909.08593, eq. 2, per token).
    `kl` [B, R] is logprobs - ref_logprobs, the estimator k1.
    """
    is_last = mask & (mask.cumsum(dim=1) == mask.sum(dim=1, keepdim=True))
    return scores[:, None] * is_last - kl_coef * kl * mask


def gae(rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, lam: float) -> Tensor:
    """Advantages [B, R] of every response token; 0 at padding. Returns are advantages + values.

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


def whiten(values: Tensor, mask: Tensor) -> Tensor:
    """`values` [B, R] shifted and scaled to mean 0 and variance 1 over the counted tokens; 0 at padding.

    Given the batch of all processes: statistics of a part would make the result depend on how it was split.
    The variance is the unbiased one.
    """
    centred = (values - masked_mean(values, mask)) * mask
    variance = centred.square().sum() / (mask.sum() - 1).clamp(min=1)
    return centred * torch.rsqrt(variance + 1e-8)


def policy_loss(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, cliprange: float) -> tuple[Tensor, Tensor]:
    """Loss [N] of every token, and whether the clip takes its gradient away [N] bool.

    -min(r A, clip(r, 1 - cliprange, 1 + cliprange) A) with r = exp(logprobs - old_logprobs)
    (Schulman et al. 2017, arXiv:1707.06347, eq. 7).
    """
    ratio = torch.exp(logprobs - old_logprobs)
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - cliprange, 1 + cliprange)
    return torch.maximum(unclipped, clipped), clipped > unclipped


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, cliprange_value: float) -> tuple[Tensor, Tensor]:
    """Loss [N] of every token, and whether the clip takes its gradient away [N] bool.

    1/2 max((V - R)^2, (clip(V, V_old - c, V_old + c) - R)^2) with c = cliprange_value: the value function follows the
    returns at most c per rollout (OpenAI baselines' ppo2; Huang et al. 2022, "The 37 implementation details of PPO").
    """
    clipped_values = old_values + (values - old_values).clamp(-cliprange_value, cliprange_value)
    unclipped = (values - returns).square()
    clipped = (clipped_values - returns).square()
    return 0.5 * torch.maximum(unclipped, clipped), clipped > unclipped


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """1 - Var(returns - values) / Var(returns), [] over the counted tokens: 1 is perfect, a constant gives 0."""

    def variance(terms: Tensor) -> Tensor:
        return masked_mean((terms - masked_mean(terms, mask)).square(), mask)

    return 1 - variance(returns - values) / variance(returns).clamp(min=1e-12)
