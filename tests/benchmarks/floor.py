"""Time the floor: what an iteration of PPO takes in plain torch with nothing around it.

    python -m tests.benchmarks.floor --inputs DIR --mode shared --iterations 4 --output timings.json
        [--micro-batch-tokens 2048]

The same work as our trainer's, with what a trainer for any model cannot have: fused projections, backward passes by
hand, no padding, the last layer only where a response token is predicted, logprobs (and on a shared trunk values) taken
from decoding, merged adapters, and no clipping of gradients.

Shapes: B episodes, R response tokens at most, M response tokens of some rows, T tokens of a row, V vocabulary.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tasks.ppo.objective import gae, policy_loss, token_rewards, value_loss, whiten
from tests.benchmarks.floor_models import Batch, Models, load_models
from tests.benchmarks.plain_decoding import Decoded, decode
from tests.benchmarks.plain_llama import Pack, Shape, TokenLogprobs
from tests.benchmarks.stopwatch import Stopwatch
from tests.benchmarks.workloads import MODES, TEMPERATURE, Workload, make_config, read_prompts, read_workload

KL_COEF, GAMMA, LAM, CLIPRANGE, VF_COEF = 0.05, 1.0, 0.95, 0.2, 0.1


@dataclass(frozen=True)
class Rollout:
    """Rows of prompt and response, and what was measured at each response token."""

    shape: Shape
    rows: Sequence[Tensor]  # [T] each
    prompt_lengths: Sequence[int]
    mask: Tensor  # [B, R] bool
    micro_batch_tokens: int

    def batches(self, chosen: Sequence[int], *, whole: bool = False) -> Iterator[Batch]:
        """The chosen rows in parts of so many tokens, without the last token, whose state predicts nothing.

        `whole`: with it, and the state at it alone is wanted.
        """
        part: list[int] = []
        for row in chosen:
            if part and sum(len(self.rows[index]) for index in [*part, row]) > self.micro_batch_tokens:
                yield self._batch(part, whole)
                part = []
            part.append(row)
        yield self._batch(part, whole)

    def answers(self, batch: Batch) -> Tensor:
        """The response tokens of the batch [M]."""
        return torch.cat([self.rows[row][self.prompt_lengths[row] :] for row in batch.chosen])

    def _batch(self, chosen: list[int], whole: bool) -> Batch:
        rows = [self.rows[row] if whole else self.rows[row][:-1] for row in chosen]
        wanted, start = [], 0
        for row, ids in zip(chosen, rows, strict=True):
            first = len(ids) - 1 if whole else self.prompt_lengths[row] - 1
            wanted.append(torch.arange(start + first, start + len(ids)))
            start += len(ids)
        positions = torch.cat([torch.arange(len(ids)) for ids in rows])
        lengths = [len(ids) for ids in rows]
        return Batch(chosen, Pack(lengths, torch.cat(rows), self.shape.rotations(positions), torch.cat(wanted)))


@dataclass(frozen=True)
class Measured:
    """At each response token, [B, R]; 0 at padding."""

    old_logprobs: Tensor
    old_values: Tensor
    advantages: Tensor
    returns: Tensor


def main() -> None:
    parser = argparse.ArgumentParser(description="Time the floor.")
    parser.add_argument("--inputs", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--mode", choices=MODES, required=True)
    parser.add_argument("--iterations", type=int, default=3, help="after one to warm up")
    parser.add_argument("--precision", default="highest", help="of torch.set_float32_matmul_precision")
    parser.add_argument("--micro-batch-tokens", type=int, default=2048)
    arguments = parser.parse_args()
    torch.set_float32_matmul_precision(arguments.precision)
    torch.manual_seed(0)
    workload, prompts = read_workload(arguments.inputs), read_prompts(arguments.inputs)
    shape = Shape.of(make_config(workload))
    models, stopwatch = load_models(arguments.mode, arguments.inputs, workload, shape), Stopwatch()
    for _ in range(arguments.iterations + 1):
        iterate(models, workload, shape, prompts, arguments.micro_batch_tokens, stopwatch)
        stopwatch.lap()
    stopwatch.write(arguments.output, vars(arguments))


def iterate(
    models: Models,
    workload: Workload,
    shape: Shape,
    prompts: Sequence[Sequence[int]],
    micro_batch_tokens: int,
    stopwatch: Stopwatch,
) -> None:
    """One iteration: decode, measure, update."""
    decoded = decode(
        models.sampling_weights(),
        shape,
        prompts,
        workload.response_length,
        eos=workload.eos,
        temperature=TEMPERATURE,
    )
    stopwatch.count(int(decoded.lengths.sum()), len(prompts))
    stopwatch.phase("rollout")
    rollout = join(shape, prompts, decoded, micro_batch_tokens)
    measured = measure(models, rollout, decoded)
    stopwatch.phase("measure")
    for _ in range(workload.num_ppo_epochs):
        for mini_batch in torch.randperm(len(prompts)).chunk(workload.num_mini_batches):
            accumulate(models, rollout, measured, mini_batch.tolist())
            models.step()
    stopwatch.phase("update")


def join(shape: Shape, prompts: Sequence[Sequence[int]], decoded: Decoded, micro_batch_tokens: int) -> Rollout:
    """The rollout of prompts and their responses."""
    lengths = decoded.lengths.tolist()
    responses = [ids[:length] for ids, length in zip(decoded.ids, lengths, strict=True)]
    rows = [torch.cat([torch.tensor(prompt), ids]) for prompt, ids in zip(prompts, responses, strict=True)]
    mask = torch.arange(decoded.ids.shape[1]) < decoded.lengths[:, None]
    return Rollout(shape, rows, [len(prompt) for prompt in prompts], mask, micro_batch_tokens)


@torch.no_grad()
def measure(models: Models, rollout: Rollout, decoded: Decoded) -> Measured:
    """One forward of each model that was not run in decoding; advantages and returns."""
    mask, rows = rollout.mask, range(len(rollout.rows))
    whole = list(rollout.batches(rows, whole=True))
    models.prepare(whole)
    scores = torch.cat([models.scores(batch) for batch in whole])
    ref_logprobs, values = torch.zeros(mask.shape), torch.zeros(mask.shape)
    for batch in rollout.batches(rows):
        chosen, places = torch.tensor(batch.chosen), mask[batch.chosen]
        logits = models.reference(batch).div_(TEMPERATURE)
        ref_logprobs[chosen] = _padded(TokenLogprobs.apply(logits, rollout.answers(batch)), places)
        values[chosen] = _padded(models.values(batch, decoded.states[batch.chosen][places]), places)
    old_logprobs = decoded.logprobs * mask
    rewards = token_rewards(scores, old_logprobs - ref_logprobs, mask, KL_COEF)
    advantages = gae(rewards, values, mask, gamma=GAMMA, lam=LAM)
    return Measured(old_logprobs, values, whiten(advantages, mask), (advantages + values) * mask)


def accumulate(models: Models, rollout: Rollout, measured: Measured, mini_batch: Sequence[int]) -> None:
    """Add the gradients of a mini-batch: the mean loss over its response tokens."""
    num_tokens = rollout.mask[mini_batch].sum()
    for batch in rollout.batches(mini_batch):
        places, answers = rollout.mask[batch.chosen], rollout.answers(batch)

        def tokens(rows: Tensor, chosen: Sequence[int] = batch.chosen, places: Tensor = places) -> Tensor:
            return rows[chosen][places]

        old_logprobs, advantages = tokens(measured.old_logprobs), tokens(measured.advantages)
        old_values, returns = tokens(measured.old_values), tokens(measured.returns)

        def policy_term(logits: Tensor) -> Tensor:
            logprobs = TokenLogprobs.apply(logits / TEMPERATURE, answers)  # noqa: B023 - called in this turn
            return policy_loss(logprobs, old_logprobs, advantages, CLIPRANGE)[0].sum() / num_tokens  # noqa: B023

        def value_term(values: Tensor) -> Tensor:
            return VF_COEF * value_loss(values, old_values, returns, CLIPRANGE)[0].sum() / num_tokens  # noqa: B023

        models.backward(batch, policy_term, value_term)


def _padded(tokens: Tensor, mask: Tensor) -> Tensor:
    """Tokens [M] where the mask [b, R] is True, 0 elsewhere."""
    return torch.zeros(mask.shape).masked_scatter_(mask, tokens)


if __name__ == "__main__":
    main()
