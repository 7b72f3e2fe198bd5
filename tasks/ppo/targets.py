"""From what was measured on a rollout to what policy and value model are pulled towards.

Shapes: B episodes, R response tokens at most.
"""

from dataclasses import dataclass

from torch import Tensor

from tasks.ppo.config import PPOConfig
from tasks.ppo.objective import (
    Moments,
    finished_scores,
    gae,
    importance_weights,
    kl_estimate,
    length_adaptive_lam,
    normalised_scores,
    token_rewards,
    whiten,
)
from tasks.ppo.rollout import Rollout


@dataclass(frozen=True)
class Targets:
    """What policy and value model are pulled towards, [B, R]; 0 at padding."""

    advantages: Tensor  # whitened, then weighted where the engine was not the policy
    returns: Tensor
    kl_coef: float  # of this iteration


def targets_of(rollout: Rollout, config: PPOConfig, kl_coef: float, moments: Moments) -> Targets:
    """Whitened advantages and the returns; `moments` are those of all scores, this rollout's included."""
    mask, lam = rollout.mask, config.lam
    kl = kl_estimate(rollout.old_logprobs, rollout.ref_logprobs, config.kl_estimator)
    scores = shaped_scores(rollout, config, moments)
    rewards = token_rewards(scores, kl, mask, kl_coef if config.kl_in == "reward" else 0.0)
    if config.whiten_rewards:
        rewards = whiten(rewards, mask, shift_mean=False)
    policy_lam = lam if config.lam_length_alpha is None else length_adaptive_lam(mask, config.lam_length_alpha)
    value_lam = lam if config.value_lam is None else config.value_lam
    advantages = gae(rewards, rollout.values, mask, gamma=config.gamma, lam=policy_lam)
    errors = gae(rewards, rollout.values, mask, gamma=config.gamma, lam=value_lam)
    advantages = whiten(advantages, mask)
    if config.rollout_engine == "vllm" and config.vllm.importance_cap is not None:
        advantages *= importance_weights(rollout.old_logprobs, rollout.generation_logprobs, config.vllm.importance_cap)
    return Targets(advantages, (errors + rollout.values) * mask, kl_coef)


def shaped_scores(rollout: Rollout, config: PPOConfig, moments: Moments) -> Tensor:
    """Scores [B] after normalising, clipping and what a missing end costs, in this order."""
    scores = rollout.scores
    if config.score_norm:
        scores = normalised_scores(scores, moments)
    if config.score_clip is not None:
        scores = scores.clamp(-config.score_clip, config.score_clip)
    return finished_scores(scores, rollout.ended, config.missing_eos_penalty, config.missing_eos_score)
