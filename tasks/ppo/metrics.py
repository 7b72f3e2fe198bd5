"""What is told of each iteration; docs/ppo.md says what each metric means and where it should be."""

from collections.abc import Mapping

import torch
from torch import Tensor

from tasks.ppo.objective import explained_variance, kl_estimate, masked_mean
from tasks.ppo.rollout import Rollout
from tasks.ppo.targets import Targets

CURVES = (
    "score", "eval_score", "kl", "entropy", "policy_loss", "value_loss", "clip_fraction", "explained_variance",
    "response_length", "ended", "policy_grad_norm", "tokens_per_s",
)  # fmt: skip


def rollout_metrics(rollout: Rollout) -> dict[str, Tensor]:
    """Means over the episodes of a rollout, each []; those of KL are sums over a response, in nats."""
    mask, lengths = rollout.mask, rollout.mask.sum(dim=1).float()
    metrics = {"score": rollout.scores.mean(), "score_std": rollout.scores.std(correction=0)}
    metrics |= {f"score_{name}": scores.mean() for name, scores in rollout.scores_by_reward.items()}
    for name, estimator in (("kl", "k1"), ("kl_k2", "k2"), ("kl_k3", "k3")):
        metrics[name] = kl_estimate(rollout.old_logprobs, rollout.ref_logprobs, estimator).sum(dim=1).mean()
    return metrics | {
        "entropy": -masked_mean(rollout.old_logprobs, mask),
        "value": masked_mean(rollout.values, mask),
        "response_length": lengths.mean(),
        "ended": rollout.ended.float().mean(),
    }


def target_metrics(rollout: Rollout, targets: Targets) -> dict[str, Tensor]:
    """How well the values foresaw the returns, and what the KL costs."""
    return {
        "explained_variance": explained_variance(rollout.values, targets.returns, rollout.mask),
        "kl_coef": torch.tensor(targets.kl_coef),
    }


def to_floats(metrics: Mapping[str, Tensor]) -> dict[str, float]:
    """The numbers of tensors [], in one transfer from the device."""
    device = next(iter(metrics.values())).device
    return dict(zip(metrics, torch.stack([metric.to(device) for metric in metrics.values()]).tolist(), strict=True))
