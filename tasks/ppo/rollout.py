"""A batch of episodes with everything that is measured on it.

Shapes: B episodes of all processes, R = sampling.response_length, N response tokens.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tasks.actor_critic.models import POLICY, REFERENCE, VALUE, Models
from tasks.data import decode_response
from tasks.engines.engine import Engine
from tasks.episodes import Episodes, join, measure_tokens, predicting_states, token_logprobs
from tasks.generation import uniform_numbers
from tasks.language_data import LanguageData
from tasks.ppo.config import PPOConfig
from tasks.processes import Processes
from tasks.prompts import Prompt
from tasks.rewards.sources import Answers, Reward, combine
from tasks.tracking import Clock


@dataclass(frozen=True)
class Run:
    """What stays the same during a run."""

    config: PPOConfig
    processes: Processes
    tokenizer: PreTrainedTokenizerBase
    engine: Engine
    models: Models
    rewards: Sequence[Reward]
    ptx: LanguageData | None
    token_budget: int  # most tokens of one forward and backward
    clock: Clock


@dataclass(frozen=True)
class Rollout:
    """The same on every process. What is measured at a token is 0 at padding.

    Decoding with a KV cache rounds otherwise than the forward that the update runs, in bfloat16 by percents: there the
    old logprobs come from a forward of their own, one of about 27 an iteration, so that the first step's ratio is 1.
    """

    episodes: Episodes
    response_ids: Tensor  # [B, R] long
    ended: Tensor  # [B] bool
    scores: Tensor  # [B] float32, the weighted sum of the rewards'
    scores_by_reward: Mapping[str, Tensor]  # [B] float32 each, as the reward source gave them
    old_logprobs: Tensor  # [B, R] float32, under the policy that sampled
    ref_logprobs: Tensor  # [B, R] float32
    values: Tensor  # [B, R] float32, before the token is chosen
    generation_logprobs: Tensor  # [B, R] float32, as the engine gave them

    @property
    def mask(self) -> Tensor:
        """True at response tokens, [B, R] bool."""
        return self.episodes.mask


def roll_out(run: Run, prompts: Sequence[Prompt], *key: int | str) -> Rollout:
    """An episode from each prompt, sampled with the numbers of `key`; each process does its share."""
    config, processes = run.config, run.processes
    uniforms = uniform_numbers(len(prompts), config.sampling.response_length, *key)
    mine = processes.share(len(prompts))
    my_prompts = [prompts[index] for index in mine]
    with run.clock("rollout"):
        responses = run.engine([prompt.ids for prompt in my_prompts], uniforms[mine])
    longest = max(len(prompt.ids) for prompt in prompts)
    episodes = join([prompt.ids for prompt in my_prompts], responses.ids, responses.mask, longest)
    with run.clock("measure"):
        episodes = run.models.with_states(episodes, run.token_budget)
        measured = _measure(run, episodes)
    with run.clock("score"):
        answers = Answers(my_prompts, episodes, decode_responses(run, responses.ids, responses.mask))
        scores = {reward.name: reward.scorer(answers) for reward in run.rewards}

    def gather(rows: Tensor) -> Tensor:
        return processes.gather(rows, len(prompts))

    scores = {name: gather(rows) for name, rows in scores.items()}
    return Rollout(
        episodes=episodes.each(gather),
        response_ids=gather(responses.ids),
        ended=gather(responses.ended),
        scores=combine(scores, run.rewards),
        scores_by_reward=scores,
        generation_logprobs=gather(responses.logprobs),
        old_logprobs=gather(measured.get(POLICY, responses.logprobs)),
        ref_logprobs=gather(measured[REFERENCE]),
        values=gather(measured[VALUE]),
    )


def decode_responses(run: Run, ids: Tensor, mask: Tensor) -> list[str]:
    """The texts of responses, given ids [b, R] and mask [b, R]."""
    lengths = mask.sum(dim=1).tolist()
    rows = zip(ids.tolist(), lengths, strict=True)
    template = run.config.conversation_template
    return [decode_response(run.tokenizer, row[:length], template) for row, length in rows]


def _measure(run: Run, episodes: Episodes) -> dict[str, Tensor]:
    """Logprobs of reference and, where wanted, of the policy, and values; each [b, R], of this process's episodes."""
    models, measured = run.models, dict[str, Tensor]()
    heads = {
        POLICY: _logprobs_by(models.language_model, run.config.sampling.temperature),
        VALUE: lambda states, _: models.value_model.head(states),
        REFERENCE: _logprobs_by(models.reference_model, run.config.sampling.temperature),
    }
    if not run.config.measures_old_logprobs:
        del heads[POLICY]
    for group in models.groups(list(heads)):
        read = _reader(models.trunk(group[0]), [heads[role] for role in group])
        measured |= dict(zip(group, measure_tokens(read, episodes, run.token_budget), strict=True))
    return measured


Head = Callable[[Tensor, Tensor], Tensor]
"""A number [N] for each token [N] from the state [N, D] before it."""


def _reader(trunk: nn.Module, heads: Sequence[Head]) -> Callable[[Episodes], Tensor]:
    """What gives the numbers of all heads, [heads, N], in one forward."""

    def read(episodes: Episodes) -> Tensor:
        states, tokens = predicting_states(trunk, episodes), episodes.response_tokens()
        return torch.stack([head(states, tokens) for head in heads])

    return read


def _logprobs_by(model: PreTrainedModel, temperature: float) -> Head:
    head = model.get_output_embeddings()
    return lambda states, tokens: token_logprobs(head(states), tokens, temperature)
