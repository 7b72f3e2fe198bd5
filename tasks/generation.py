"""Draw responses from a language model, many prompts at once, the same ones however they are grouped.

Shapes: B episodes, P prompt tokens, R = the longest response allowed, V vocabulary.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tasks.config import SamplingConfig
from tasks.data import pad_left
from tasks.episodes import join, logprobs_of, measure_tokens, token_logprobs
from tasks.models.kv_cache import reserved_cache
from tasks.stop_strings import StopStrings

SHRINK_EVERY = 8  # tokens between looks at which responses have ended: each look waits for the device


@dataclass(frozen=True)
class Responses:
    """What was generated, one row a prompt, padded on the right."""

    ids: Tensor  # [B, R] long
    mask: Tensor  # [B, R] bool, True up to the end and including it
    logprobs: Tensor  # [B, R] float32, 0 at padding
    ended: Tensor  # [B] bool, whether the last token is a stop token or completes a stop string

    def unpadded(self) -> list[list[int]]:
        """Each response's tokens without padding."""
        lengths = self.mask.sum(dim=1).tolist()
        return [row[:length] for row, length in zip(self.ids.tolist(), lengths, strict=True)]


@dataclass(frozen=True)
class Stops:
    """What ends a response."""

    ids: Tensor  # [number of stop tokens] long
    strings: StopStrings | None

    def places(self, ids: Tensor) -> Tensor:
        """Where responses ids [B, R] may end, [B, R] bool: they do at the first place, what follows has no meaning."""
        places = torch.isin(ids, self.ids)
        if self.strings is not None:
            for row, tokens in enumerate(ids.tolist()):
                if end := self.strings.end(tokens):
                    places[row, end - 1] = True
        return places

    def strings_completed(self, ids: Tensor, num_new: int) -> Tensor:
        """Whether responses ids [b, R] hold a stop string, [b] bool, looked for near the last `num_new` tokens."""
        if self.strings is None:
            return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
        return torch.tensor([self.strings.have_ended(row, num_new) for row in ids.tolist()], device=ids.device)


def seeded_generator(*key: int | str) -> torch.Generator:
    """A CPU generator whose state is a function of `key` alone: nothing of it needs to be saved for a resume."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big"))


def uniform_numbers(num_episodes: int, length: int, *key: int | str) -> Tensor:
    """Numbers in [0, 1) for `generate`, [num_episodes, length] float64: a function of `key` and the shape alone."""
    return torch.rand((num_episodes, length), generator=seeded_generator(*key), dtype=torch.float64)


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    sampling: SamplingConfig,
    *,
    uniforms: Tensor | None,
    stop_ids: Sequence[int],
    tokenizer: PreTrainedTokenizerBase | None = None,
    pad_token_id: int = 0,
    rows_at_once: int = 64,
) -> Responses:
    """A response to each prompt, R = sampling.response_length.

    Each token is drawn by inverse CDF with the number of its episode and position in `uniforms` [B, R] (None: the
    likeliest token), so neither `rows_at_once` nor the other rows of a batch decide what is drawn.
    A response ends with the first token of `stop_ids`, or that completes a string of sampling.stop_strings, which
    takes the tokenizer; the model's generation config has no say. What stands behind it is `pad_token_id`.
    The logprobs are those of the model's whole distribution at the temperature. top_k, top_p and min_new_tokens narrow
    what is drawn from but do not renormalise them: they stay comparable with those of a reference model.
    """
    device = model.device
    ids = torch.zeros((len(prompts), sampling.response_length), dtype=torch.long, device=device)
    logprobs = torch.zeros(ids.shape, device=device)
    stops = make_stops(stop_ids, sampling, tokenizer, device)
    by_length = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    for start in range(0, len(prompts), rows_at_once):
        rows = by_length[start : start + rows_at_once]
        numbers = None if uniforms is None else uniforms[rows].to(device)
        ids[rows], logprobs[rows] = _decode(model, [prompts[row] for row in rows], sampling, numbers, stops)
    return cut_at_ends(ids, logprobs, stops, pad_token_id)


def cut_at_ends(ids: Tensor, logprobs: Tensor, stops: Stops, pad_token_id: int) -> Responses:
    """The responses ids [B, R] with logprobs [B, R], each up to its first end; what follows had no meaning."""
    is_end = stops.places(ids)
    mask = is_end.cumsum(dim=1) - is_end.long() == 0
    ended = (is_end & mask).any(dim=1)
    return Responses(ids.masked_fill(~mask, pad_token_id), mask, logprobs * mask, ended)


def response_logprobs(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    responses: Responses,
    temperature: float,
    micro_batch_tokens: int = 8192,
) -> Tensor:
    """Logprobs of the responses' tokens under `model`, [B, R] float32, 0 at padding; no gradient."""
    episodes = join(prompts, responses.ids, responses.mask)
    return measure_tokens(lambda part: logprobs_of(model, part, temperature), episodes, micro_batch_tokens)


def make_stops(
    stop_ids: Sequence[int], sampling: SamplingConfig, tokenizer: PreTrainedTokenizerBase | None, device: torch.device
) -> Stops:
    """What ends a response: a token of `stop_ids`, or one that completes a string of sampling.stop_strings."""
    ids = torch.tensor(list(stop_ids), dtype=torch.long, device=device)
    if not sampling.stop_strings:
        return Stops(ids, None)
    assert tokenizer is not None, "stop strings are looked for in text: the tokenizer is needed"
    return Stops(ids, StopStrings(tokenizer, sampling.stop_strings, sampling.min_new_tokens))


def draw(logits: Tensor, numbers: Tensor | None, sampling: SamplingConfig) -> Tensor:
    """A token [B] from each row of logits [B, V], by the numbers [B] in [0, 1); without numbers the likeliest.

    The first token whose cumulated probability exceeds the number; in float64, where no sum of probabilities rounds
    onto its neighbour's and none of probability 0 is drawn.
    """
    if numbers is None:
        return logits.argmax(dim=-1)
    probabilities = torch.softmax(logits.float() / sampling.temperature, dim=-1)
    cumulated = cumulative_sums(_narrow(probabilities, sampling).double())
    thresholds = numbers[:, None] * cumulated[:, -1:]
    found = torch.searchsorted(cumulated, thresholds, right=True).squeeze(1)
    return found.clamp(max=logits.shape[-1] - 1)  # where logits are not finite no token exceeds the number


def cumulative_sums(rows: Tensor) -> Tensor:
    """Of each row [B, V] from its start, [B, V]; the same bits each time, also on a GPU.

    torch.cumsum of floats is not deterministic on CUDA, and refused under torch.use_deterministic_algorithms.
    """
    return blocked_sums(rows) if rows.device.type == "cuda" else rows.cumsum(dim=-1)


def blocked_sums(rows: Tensor, width: int = 256) -> Tensor:
    """Cumulative sums [B, V] of rows [B, V] by matrix products: within blocks, plus the blocks before."""
    length = rows.shape[1]
    blocks = pad(rows, (0, -length % width)).unflatten(1, (-1, width))
    within = blocks @ rows.new_ones(width, width).triu()
    totals = within[..., -1]
    before = totals @ rows.new_ones(totals.shape[1], totals.shape[1]).triu(diagonal=1)
    return (within + before[..., None]).flatten(1)[:, :length]


def _narrow(probabilities: Tensor, sampling: SamplingConfig) -> Tensor:
    """`probabilities` [B, V], 0 for what top_k and top_p leave out; not renormalised."""
    if 0 < sampling.top_k < probabilities.shape[-1]:
        kth = probabilities.topk(sampling.top_k, dim=-1).values[:, -1:]
        probabilities = probabilities * (probabilities >= kth)
    if sampling.top_p < 1:
        descending = probabilities.sort(dim=-1, descending=True).values
        mass_before = descending.cumsum(dim=-1) - descending
        inside = mass_before < sampling.top_p * descending.sum(dim=-1, keepdim=True)
        smallest = descending.gather(1, inside.sum(dim=-1, keepdim=True) - 1)
        probabilities = probabilities * (probabilities >= smallest)
    return probabilities


def _decode(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    sampling: SamplingConfig,
    numbers: Tensor | None,
    stops: Stops,
) -> tuple[Tensor, Tensor]:
    """Tokens [b, R] and their logprobs [b, R]; what stands after a response's end has no meaning.

    Rows that have ended leave the batch and the cache at the next look, so a long tail costs only its own rows.
    """
    device = model.device
    inputs, prompt_mask = (tensor.to(device) for tensor in pad_left(prompts, 0))
    ids = torch.zeros((len(prompts), sampling.response_length), dtype=torch.long, device=device)
    logprobs = torch.zeros(ids.shape, device=device)
    attention = torch.cat([prompt_mask, torch.ones_like(ids, dtype=torch.bool)], dim=1)
    positions = (attention.cumsum(dim=1) - 1).clamp(min=0)
    live = torch.arange(len(prompts), device=device)
    ended = torch.zeros(len(prompts), dtype=torch.bool, device=device)
    cache = reserved_cache(attention.shape[1])
    for step in range(sampling.response_length):
        end = prompt_mask.shape[1] + step
        logits = model(
            input_ids=inputs,
            attention_mask=attention[:, :end],
            position_ids=positions[:, end - inputs.shape[1] : end],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        allowed = logits if step >= sampling.min_new_tokens else logits.index_fill(1, stops.ids, -torch.inf)
        tokens = draw(allowed, None if numbers is None else numbers[live, step], sampling)
        ids[live, step] = tokens
        logprobs[live, step] = token_logprobs(logits, tokens, sampling.temperature)
        inputs = tokens[:, None]
        ended |= torch.isin(tokens, stops.ids)
        if step % SHRINK_EVERY != SHRINK_EVERY - 1:
            continue
        ended |= stops.strings_completed(ids[live, : step + 1], SHRINK_EVERY)
        if ended.any():
            kept = (~ended).nonzero().squeeze(1)
            if not len(kept):
                break
            cache.batch_select_indices(kept)
            inputs, attention, positions, live, ended = (t[kept] for t in (inputs, attention, positions, live, ended))
    return ids, logprobs
