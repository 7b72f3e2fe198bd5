"""A batch of episodes with everything that is measured on it.

Shapes: B episodes of all processes, R = sampling.response_length, N response tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from tasks.data import decode_response
from tasks.episodes import Episodes, join, logprobs_of, measure_tokens, values_of
from tasks.generation import Responses, generate, uniform_numbers
from tasks.ppo.config import PPOConfig
from tasks.ppo.metrics import Clock
from tasks.ppo.models import Models
from tasks.processes import Processes
from tasks.prompts import Prompt
from tasks.rewards import RewardFunction, check_finite, function_scores, model_scores


@dataclass(frozen=True)
class Run:
    """What stays the same during a run."""

    config: PPOConfig
    processes: Processes
    tokenizer: PreTrainedTokenizerBase
    stop_ids: Sequence[int]
    models: Models
    reward_function: RewardFunction | None  # None: the reward model scores
    clock: Clock


@dataclass(frozen=True)
class Rollout:
    """The same on every process. What is measured at a token is 0 at padding.

    The old logprobs come from the forward that the update runs, not from generation: decoding with a KV cache rounds
    differently, in bfloat16 by percents, and the first step's ratio would not be 1. It costs one of about 27 forward
    passes an iteration; how far generation was off is kept as a metric, for it shows a cache or mask that is wrong.
    """

    episodes: Episodes
    response_ids: Tensor  # [B, R] long
    ended: Tensor  # [B] bool
    scores: Tensor  # [B] float32, as the reward source gave them
    old_logprobs: Tensor  # [B, R] float32, under the policy that sampled
    ref_logprobs: Tensor  # [B, R] float32
    values: Tensor  # [B, R] float32, before the token is chosen
    generation_logprobs: Tensor  # [B, R] float32, as decoded

    @property
    def mask(self) -> Tensor:
        """True at response tokens, [B, R] bool."""
        return self.episodes.mask

    @property
    def kl(self) -> Tensor:
        """logprobs - ref_logprobs under the policy that sampled, [B, R]: the KL estimator k1."""
        return self.old_logprobs - self.ref_logprobs


def roll_out(run: Run, prompts: Sequence[Prompt], *key: int | str) -> Rollout:
    """An episode from each prompt, sampled with the numbers of `key`; each process does its share."""
    config, processes = run.config, run.processes
    uniforms = uniform_numbers(len(prompts), config.sampling.response_length, *key)
    mine = processes.share(len(prompts))
    my_prompts = [prompts[index] for index in mine]
    with run.clock("rollout"):
        responses = generate(
            run.models.policy(),
            [prompt.ids for prompt in my_prompts],
            config.sampling,
            uniforms=uniforms[mine],
            stop_ids=run.stop_ids,
            pad_token_id=run.tokenizer.pad_token_id,
            rows_at_once=config.rollout_batch_size,
        )
    with run.clock("score"):
        generated = (responses.ids, responses.mask, responses.ended, responses.logprobs)
        measured = _measure(run, my_prompts, responses)
        ids, mask, ended, generation_logprobs, old_logprobs, ref_logprobs, values, scores = (
            processes.gather(rows, len(prompts)) for rows in (*generated, *measured)
        )
        check_finite(scores.tolist(), config.reward_function or "the reward model")
    return Rollout(
        episodes=join([prompt.ids for prompt in prompts], ids, mask),
        response_ids=ids,
        ended=ended,
        scores=scores,
        old_logprobs=old_logprobs,
        ref_logprobs=ref_logprobs,
        values=values,
        generation_logprobs=generation_logprobs,
    )


def decode_responses(run: Run, ids: Tensor, mask: Tensor) -> list[str]:
    """The texts of responses, given ids [b, R] and mask [b, R]."""
    lengths = mask.sum(dim=1).tolist()
    rows = zip(ids.tolist(), lengths, strict=True)
    return [decode_response(run.tokenizer, row[:length]) for row, length in rows]


def _measure(run: Run, prompts: Sequence[Prompt], responses: Responses) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Old logprobs, reference logprobs, values, each [b, R], and scores [b] of this process's episodes."""
    config, models = run.config, run.models
    episodes = join([prompt.ids for prompt in prompts], responses.ids, responses.mask)
    budget, temperature = config.micro_batch_tokens, config.sampling.temperature
    policy = models.policy()
    old_logprobs = measure_tokens(lambda part: logprobs_of(policy, part, temperature), episodes, budget)
    reference = models.reference()
    ref_logprobs = measure_tokens(lambda part: logprobs_of(reference, part, temperature), episodes, budget)
    value = models.value()
    values = measure_tokens(lambda part: values_of(value, part), episodes, budget)
    if run.reward_function is None:
        scores = model_scores(models.reward(), episodes, budget)
    else:
        texts = decode_responses(run, responses.ids, responses.mask)
        columns = {name: [prompt.columns[name] for prompt in prompts] for name in prompts[0].columns}
        numbers = function_scores(run.reward_function, [prompt.text for prompt in prompts], texts, columns)
        scores = torch.tensor(numbers, device=values.device)
    return old_logprobs, ref_logprobs, values, scores
