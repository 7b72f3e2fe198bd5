"""What our functions say beside what TRL's trainer computed; `python -m tests.parity.compare` prints how far apart.

Each function gives (ours, theirs) by the quantity's name.
Shapes: B episodes, R response tokens, N response tokens of all rows in a row.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from tasks.episodes import logprobs_of, scores_of, values_of
from tasks.ppo.objective import (
    finished_scores,
    gae,
    kl_estimate,
    policy_loss,
    token_rewards,
    value_loss,
    whiten,
)
from tests.parity.recorded import Recorded, description, language_model, parameters, recorded, scalar_model

Pairs = dict[str, tuple[Tensor, Tensor]]

EVERY_RUN = ("full", "full_k3_whitened", "early", "early_k3_whitened", "early_micro_batches")
FULL_RUNS = ("full", "full_k3_whitened")  # all responses have the full length


@torch.no_grad()
def measured(run: Recorded) -> Pairs:
    """What the models say of the recorded tokens: [N] of the response tokens, scores [B]."""
    episodes, mask, temperature = run.episodes(), run.mask, run.settings["temperature"]
    scores = scores_of(scalar_model("reward"), episodes)
    penalised = finished_scores(scores, run.ended, run.settings["missing_eos_penalty"], None)
    return {
        "logprobs": (logprobs_of(language_model("policy"), episodes, temperature), run["logprobs"][mask]),
        "ref_logprobs": (logprobs_of(language_model("reference"), episodes, temperature), run["ref_logprobs"][mask]),
        "values": (values_of(scalar_model("value"), episodes), run["values"][mask]),
        "scores": (penalised, run["scores"]),
    }


def targets(run: Recorded) -> Pairs:
    """From the recorded logprobs, values and scores to advantages and returns, [B, R]."""
    settings, mask = run.settings, run.mask
    kl = kl_estimate(run["logprobs"], run["ref_logprobs"], settings["kl_estimator"])
    rewards = token_rewards(run["scores"], kl, mask, settings["kl_coef"])
    pairs = {"kl": (kl, run["kl"]), "KL penalty": (-settings["kl_coef"] * kl, run["non_score_reward"])}
    if settings["whiten_rewards"]:
        pairs["rewards before whitening"] = (rewards, run["rewards_before_whitening"])
        rewards = whiten(rewards, mask, shift_mean=False)
    advantages = gae(rewards, run["values"], mask, gamma=settings["gamma"], lam=settings["lam"])
    return pairs | {
        "rewards": (rewards, run["rewards"]),
        "advantages": (advantages, run["advantages"]),
        "returns": (advantages + run["values"], run["returns"]),
        "whitened advantages": (whiten(advantages, mask), run["micro_batch_0.whitened_advantages"]),
    }


def steps(run: Recorded) -> Iterator[Pairs]:
    """Losses [] and all gradients in a row, of each optimizer step; each step starts where the one before ended."""
    policy, value = language_model("policy"), scalar_model("value")
    trained = [*policy.parameters(), *value.parameters()]
    optimizer = torch.optim.AdamW(trained, lr=run.settings["learning_rate"], weight_decay=0.0)
    for step in range(run.settings["num_ppo_epochs"]):
        policy_mean, value_mean = mean_policy_loss(run, policy), mean_value_loss(run, value)
        (policy_mean + run.settings["vf_coef"] * value_mean).backward()
        yield {
            "policy loss": (policy_mean.detach(), run[f"micro_batch_{step}.policy_loss"]),
            "value loss": (value_mean.detach(), run[f"micro_batch_{step}.value_loss"]),
            "policy gradient": gradients(policy, run, step, "policy"),
            "value gradient": gradients(value, run, step, "value"),
        }
        optimizer.step()
        optimizer.zero_grad()


def mean_policy_loss(run: Recorded, policy: nn.Module) -> Tensor:
    """Of the response tokens of the whole batch, []."""
    mask, settings = run.mask, run.settings
    logprobs = logprobs_of(policy, run.episodes(), settings["temperature"])
    advantages = run["micro_batch_0.whitened_advantages"][mask]
    return policy_loss(logprobs, run["logprobs"][mask], advantages, settings["cliprange"])[0].mean()


def mean_value_loss(run: Recorded, value: nn.Module, mask: Tensor | None = None) -> Tensor:
    """Of the whole batch's tokens where `mask` [B, R] is True, []; without a mask the response tokens."""
    mask = run.mask if mask is None else mask
    values, clip = values_of(value, run.episodes(mask)), run.settings["cliprange_value"]
    return value_loss(values, run["values"][mask], run["returns"][mask], clip)[0].mean()


def gradients(model: nn.Module, run: Recorded, step: int, part: str) -> tuple[Tensor, Tensor]:
    """All of the model's gradients in a row, and TRL's in the same order."""
    ours, theirs = parameters(model), run.gradients(step, part)
    assert ours.keys() == theirs.keys()
    pairs = [(ours[name].grad.flatten(), theirs[name].flatten()) for name in ours]
    return torch.cat([one for one, _ in pairs]), torch.cat([other for _, other in pairs])


def table() -> str:
    """Markdown: the largest difference of each quantity over the recorded runs in which it must agree."""
    found: dict[str, list[tuple[float, float]]] = {}
    runs = {name: recorded(name) for name in EVERY_RUN}
    compared = [measured(run) for run in runs.values()]
    for name in FULL_RUNS:
        compared += [targets(runs[name]), *steps(runs[name])]
    for pairs in compared:
        for name, (ours, theirs) in pairs.items():
            found.setdefault(name, []).append(((ours - theirs).abs().max().item(), theirs.abs().max().item()))
    lines = [f"| {name} | {max(it)[0]:.1e} | {max(scale for _, scale in it):.3g} |" for name, it in found.items()]
    return "\n".join(["| quantity | largest difference | largest absolute value |", "|---|---|---|", *lines])


if __name__ == "__main__":
    versions = description()["versions"]
    print(f"TRL {versions['trl']}, torch {versions['torch']}, transformers {versions['transformers']}; float32, CPU\n")
    print(table())
