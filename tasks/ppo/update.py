"""The epochs over one rollout: mini-batches, losses, optimizer steps.

Shapes: B episodes, R response tokens at most, N response tokens of a micro-batch.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tasks.episodes import Episodes, logprobs_of, values_of
from tasks.generation import seeded_generator
from tasks.ppo.config import PPOConfig
from tasks.ppo.objective import gae, kl_k3, penalised_scores, policy_loss, token_rewards, value_loss, whiten
from tasks.ppo.optimizer import Optimizer
from tasks.ppo.rollout import Rollout, Run

POLICY_METRICS = ("policy_loss", "clip_fraction", "ratio", "approx_kl")
VALUE_METRICS = ("value_loss", "value_clip_fraction")
NORMS = ("policy_grad_norm", "value_grad_norm")

Terms = Callable[[Episodes, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Targets:
    """What policy and value model are pulled towards, [B, R]; 0 at padding."""

    advantages: Tensor
    returns: Tensor


def targets_of(rollout: Rollout, config: PPOConfig) -> Targets:
    """Whitened advantages and the returns of a rollout."""
    scores = penalised_scores(rollout.scores, rollout.ended, config.missing_eos_penalty)
    rewards = token_rewards(scores, rollout.kl, rollout.mask, config.kl_coef)
    advantages = gae(rewards, rollout.values, rollout.mask, gamma=config.gamma, lam=config.lam)
    return Targets(whiten(advantages, rollout.mask), (advantages + rollout.values) * rollout.mask)


def mini_batches(run: Run, iteration: int, epoch: int, device: torch.device) -> list[Tensor]:
    """Episodes of each mini-batch of an epoch, the same on every process."""
    generator = seeded_generator("mini-batches", run.config.seed, iteration, epoch)
    order = torch.randperm(run.config.batch_size, generator=generator)
    return list(order.to(device).chunk(run.config.num_mini_batches))


def update(run: Run, optimizer: Optimizer, rollout: Rollout, targets: Targets, iteration: int) -> dict[str, Tensor]:
    """Train on the rollout: num_ppo_epochs x num_mini_batches optimizer steps. Means over them, each [] on the device.

    The policy's forward and backward come before the value model's: on a shared base a backward must find the adapter
    of its forward.
    """
    config, device = run.config, rollout.scores.device
    step = iteration * config.num_ppo_epochs * config.num_mini_batches
    losses, norms = torch.zeros(len(POLICY_METRICS + VALUE_METRICS), device=device), torch.zeros(2, device=device)
    for epoch in range(config.num_ppo_epochs):
        for mini_batch in mini_batches(run, iteration, epoch, device):
            num_tokens = rollout.mask[mini_batch].sum()
            mine = mini_batch[run.processes.share(len(mini_batch))]
            policy_sums = _accumulate(run, rollout, mine, num_tokens, _policy_terms(run, rollout, targets))
            value_sums = _accumulate(run, rollout, mine, num_tokens, _value_terms(run, rollout, targets))
            losses += torch.cat([policy_sums, value_sums])
            norms += optimizer.step(step)
            step += 1
    means = torch.cat([run.processes.sum_in_place(losses), norms]) / (config.num_ppo_epochs * config.num_mini_batches)
    return dict(zip(POLICY_METRICS + VALUE_METRICS + NORMS, means, strict=True))


def _accumulate(run: Run, rollout: Rollout, rows: Tensor, num_tokens: Tensor, terms: Terms) -> Tensor:
    """Add the gradients of this process's rows [b], micro-batch by micro-batch; their share of the metrics.

    Every token weighs 1 / num_tokens, those of the whole mini-batch on all processes: neither the micro-batches nor
    the processes change the gradient.
    """
    sums = torch.zeros((), device=rows.device)
    for indices in rollout.episodes.select(rows).split(run.config.micro_batch_tokens):
        part = rows[indices]
        loss, metrics = terms(rollout.episodes.select(part), part)
        (loss / num_tokens).backward()
        sums = sums + metrics / num_tokens
    return sums


def _policy_terms(run: Run, rollout: Rollout, targets: Targets) -> Terms:
    policy, config = run.models.policy(), run.config

    def terms(episodes: Episodes, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Summed loss [] and sums of POLICY_METRICS [4] of the episodes at rows [b]."""
        mask = rollout.mask[rows]
        old_logprobs = rollout.old_logprobs[rows][mask]
        logprobs = logprobs_of(policy, episodes, config.sampling.temperature)
        losses, clipped = policy_loss(logprobs, old_logprobs, targets.advantages[rows][mask], config.cliprange)
        ratio = torch.exp(logprobs.detach() - old_logprobs)
        sums = [losses.detach(), clipped, ratio, kl_k3(old_logprobs, logprobs.detach())]
        return losses.sum(), torch.stack([term.sum() for term in sums])

    return terms


def _value_terms(run: Run, rollout: Rollout, targets: Targets) -> Terms:
    value, config = run.models.value(), run.config

    def terms(episodes: Episodes, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Summed, weighted loss [] and sums of VALUE_METRICS [2] of the episodes at rows [b]."""
        mask = rollout.mask[rows]
        values = values_of(value, episodes)
        old_values, returns = rollout.values[rows][mask], targets.returns[rows][mask]
        losses, clipped = value_loss(values, old_values, returns, config.cliprange_value)
        return config.vf_coef * losses.sum(), torch.stack([losses.detach().sum(), clipped.sum()])

    return terms
