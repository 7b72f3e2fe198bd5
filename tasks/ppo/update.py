"""The epochs over one rollout: mini-batches, losses, optimizer steps.

Shapes: B episodes, R response tokens at most, N response tokens of a micro-batch, D hidden size.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from tasks.actor_critic.models import POLICY, VALUE
from tasks.actor_critic.optimizer import PARTS, Optimizer
from tasks.episodes import logprobs_of, predicting_states, token_logprobs
from tasks.generation import seeded_generator
from tasks.ppo.config import PPOConfig
from tasks.ppo.objective import entropy, kl_estimate, policy_loss, value_loss
from tasks.ppo.rollout import Rollout, Run
from tasks.ppo.targets import Targets

Sums = dict[str, Tensor]


@dataclass(frozen=True)
class Tokens:
    """The response tokens of a micro-batch, each field [N]."""

    ids: Tensor
    generation_logprobs: Tensor
    old_logprobs: Tensor
    ref_logprobs: Tensor
    old_values: Tensor
    advantages: Tensor
    returns: Tensor


def update(run: Run, optimizer: Optimizer, rollout: Rollout, targets: Targets, iteration: int) -> dict[str, Tensor]:
    """Train on the rollout: num_ppo_epochs x num_mini_batches optimizer steps. Means over them, each [] on the device.

    A mini-batch whose ratio is out of bounds is skipped; at target_kl the updates of the iteration end.
    """
    config = run.config
    parts = (VALUE,) if iteration < config.value_pretraining_iterations else PARTS
    history: list[Sums] = []
    for turn, mini_batch in enumerate(_mini_batches(run, iteration, rollout.scores.device)):
        step = iteration * config.steps_per_iteration + turn
        sums = _accumulate(run, rollout, targets, mini_batch, parts)
        if turn:  # the policy is no longer the one that generated
            sums.pop("generation_gap", None)
        if config.ptx_coef and POLICY in parts:
            sums |= _accumulate_ptx(run, step)
        sums = run.processes.sum_each(sums)
        has_drifted = config.target_kl is not None and bool(sums.get("approx_kl", 0) > config.target_kl)
        is_spike = config.ratio_threshold is not None and bool(sums.get("ratio", 0) > config.ratio_threshold)
        if has_drifted or is_spike:
            optimizer.clear()
        else:
            sums |= dict(zip(("policy_grad_norm", "value_grad_norm"), optimizer.step(step, parts), strict=True))
        history.append(sums)
        if has_drifted:
            break
    num_steps = sum("value_grad_norm" in sums for sums in history)
    return _means(history) | {"updates": torch.tensor(num_steps / config.steps_per_iteration)}


def mini_batches(config: PPOConfig, iteration: int, epoch: int, device: torch.device) -> list[Tensor]:
    """Episodes of each mini-batch of an epoch, the same on every process."""
    generator = seeded_generator("mini-batches", config.seed, iteration, epoch)
    order = torch.randperm(config.batch_size, generator=generator)
    return list(order.to(device).chunk(config.num_mini_batches))


def _mini_batches(run: Run, iteration: int, device: torch.device) -> list[Tensor]:
    """The mini-batches of all epochs."""
    epochs = range(run.config.num_ppo_epochs)
    return [part for epoch in epochs for part in mini_batches(run.config, iteration, epoch, device)]


def _accumulate(run: Run, rollout: Rollout, targets: Targets, mini_batch: Tensor, parts: Sequence[str]) -> Sums:
    """Add the gradients of this process's share of the mini-batch [b], micro-batch by micro-batch; its metrics.

    Every token weighs 1 / tokens of the whole mini-batch on all processes: neither the micro-batches nor the processes
    change the gradient. On a shared base a backward finds the adapter of its forward: one model is done with before
    the next is asked for.
    """
    num_tokens = rollout.mask[mini_batch].sum()
    rows = mini_batch[run.processes.share(len(mini_batch))]
    micro_batches = [rows[indices] for indices in rollout.episodes.select(rows).split(run.token_budget)]
    sums: Sums = {}
    for group in run.models.groups(parts):
        trunk = run.models.trunk(group[0])
        for part in micro_batches:
            tokens = _tokens_of(rollout, targets, part)
            states = predicting_states(trunk, rollout.episodes.select(part))
            losses, metrics = zip(*[_TERMS[name](run, targets, tokens, states) for name in group], strict=True)
            (torch.stack(losses).sum() / num_tokens).backward()
            sums = _plus(sums, *metrics)
    return {name: total / num_tokens for name, total in sums.items()}


def _policy_term(run: Run, targets: Targets, tokens: Tokens, states: Tensor) -> tuple[Tensor, Sums]:
    """Summed policy loss [] given the states [N, D], and the sums of its metrics."""
    config, temperature = run.config, run.config.sampling.temperature
    logits = run.models.language_model.get_output_embeddings()(states)
    logprobs = token_logprobs(logits, tokens.ids, temperature)
    losses, clipped = policy_loss(
        logprobs,
        tokens.old_logprobs,
        tokens.advantages,
        config.cliprange,
        config.cliprange_high,
        config.dual_clip,
    )
    now = logprobs.detach()
    metrics = {
        "policy_loss": losses.detach(),
        "clip_fraction": clipped,
        "ratio": torch.exp(now - tokens.old_logprobs),
        "approx_kl": kl_estimate(tokens.old_logprobs, now, "k3"),
        "generation_gap": (now - tokens.generation_logprobs).abs(),
    }
    if config.kl_in == "loss":
        losses = losses + targets.kl_coef * kl_estimate(logprobs, tokens.ref_logprobs, config.kl_estimator)
    if config.entropy_coef:
        entropies = entropy(logits / temperature)
        losses = losses - config.entropy_coef * entropies
        metrics["full_entropy"] = entropies.detach()
    return (1 - config.ptx_coef) * losses.sum(), _sums(metrics)


def _value_term(run: Run, targets: Targets, tokens: Tokens, states: Tensor) -> tuple[Tensor, Sums]:
    """Summed, weighted value loss [] given the states [N, D], and the sums of its metrics."""
    values = run.models.value_model.head(states)
    losses, clipped = value_loss(values, tokens.old_values, tokens.returns, run.config.cliprange_value)
    metrics = {"value_loss": losses.detach(), "value_clip_fraction": clipped}
    return run.config.vf_coef * losses.sum(), _sums(metrics)


_TERMS = {POLICY: _policy_term, VALUE: _value_term}


def _accumulate_ptx(run: Run, step: int) -> Sums:
    """Add the gradient of the language-model loss of step's records; its mean over their completions' tokens."""
    assert run.ptx is not None
    config, processes = run.config, run.processes
    episodes = run.ptx.batch(config.ptx_batch_size, config.seed, step, processes.device)
    num_tokens = episodes.mask.sum()
    mine = torch.tensor(processes.share(config.ptx_batch_size), device=processes.device)
    policy, total = run.models.policy(), torch.zeros((), device=processes.device)
    for indices in episodes.select(mine).split(run.token_budget):
        loss = -logprobs_of(policy, episodes.select(mine[indices]), temperature=1.0).sum() / num_tokens
        (config.ptx_coef * loss).backward()
        total += loss.detach()
    return {"ptx_loss": total}


def _tokens_of(rollout: Rollout, targets: Targets, rows: Tensor) -> Tokens:
    """The response tokens of the episodes at rows [b]."""
    mask = rollout.mask[rows]
    measured = {
        "ids": rollout.response_ids,
        "generation_logprobs": rollout.generation_logprobs,
        "old_logprobs": rollout.old_logprobs,
        "ref_logprobs": rollout.ref_logprobs,
        "old_values": rollout.values,
        "advantages": targets.advantages,
        "returns": targets.returns,
    }
    return Tokens(**{field.name: measured[field.name][rows][mask] for field in fields(Tokens)})


def _sums(metrics: Mapping[str, Tensor]) -> Sums:
    return {name: terms.sum() for name, terms in metrics.items()}


def _plus(sums: Sums, *others: Sums) -> Sums:
    """Key by key, the total."""
    return sums | {name: sums.get(name, 0) + term for other in others for name, term in other.items()}


def _means(history: Sequence[Sums]) -> Sums:
    """The mean of each metric over the optimizer steps in which it was measured."""
    names = {name: None for sums in history for name in sums}
    return {name: torch.stack([sums[name] for sums in history if name in sums]).mean() for name in names}
