"""What is told of each iteration, and how long its phases took."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tasks.ppo.objective import explained_variance, kl_k3, masked_mean

if TYPE_CHECKING:
    from tasks.ppo.rollout import Rollout

CURVES = (
    "score", "eval_score", "kl", "entropy", "policy_loss", "value_loss", "clip_fraction", "explained_variance",
    "response_length", "ended", "policy_grad_norm", "tokens_per_s",
)  # fmt: skip


class Clock:
    """Seconds spent in each named phase, the work on the device included."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        start = _now()
        yield
        self.seconds[phase] = self.seconds.get(phase, 0.0) + _now() - start

    def take(self) -> dict[str, float]:
        """The seconds since the last take, by phase."""
        taken, self.seconds = self.seconds, {}
        return taken


def rollout_metrics(rollout: "Rollout") -> dict[str, Tensor]:
    """Means over a rollout, each a tensor [] on the device. Sums over tokens are per episode, in nats."""
    mask, lengths = rollout.mask, rollout.mask.sum(dim=1).float()
    return {
        "score": rollout.scores.mean(),
        "score_std": rollout.scores.std(),
        "kl": rollout.kl.sum(dim=1).mean(),
        "kl_k3": kl_k3(rollout.old_logprobs, rollout.ref_logprobs).sum(dim=1).mean(),
        "entropy": -masked_mean(rollout.old_logprobs, mask),
        "value": masked_mean(rollout.values, mask),
        "response_length": lengths.mean(),
        "ended": rollout.ended.float().mean(),
        "generation_gap": masked_mean((rollout.generation_logprobs - rollout.old_logprobs).abs(), mask),
    }


def fit_metrics(values: Tensor, returns: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """How well the values [B, R] foresaw the returns [B, R]."""
    return {"explained_variance": explained_variance(values, returns, mask)}


def to_floats(metrics: Mapping[str, Tensor]) -> dict[str, float]:
    """The numbers of tensors [], in one transfer from the device."""
    return dict(zip(metrics, torch.stack(list(metrics.values())).tolist(), strict=True))


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
