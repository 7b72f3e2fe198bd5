"""Prompts with their responses as rows of one batch, and what a model says of each response token.

Rows are padded on the right and attention is causal, so no token sees padding and no attention mask is needed.
The head of a model runs only at the positions that predict response tokens.

Shapes: B episodes, P prompt tokens, R response tokens at most, T <= P + R tokens of the longest row,
N response tokens of all rows in a row, V vocabulary, D hidden size.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad
from transformers import PreTrainedModel

from tasks.data import micro_batches, pad_right
from tasks.models.last_layer import read_only_at
from tasks.models.modeling import ScalarModel, backbone
from tasks.models.trunk import LowerLayers, UpperLayers


@dataclass(frozen=True)
class Episodes:
    """Each row a prompt, its response, then padding."""

    ids: Tensor  # [B, T] long
    prompt_lengths: Tensor  # [B] long
    mask: Tensor  # [B, R] bool, True at response tokens
    states: Tensor | None = None  # [B, T, D] what lower layers make of ids, where UpperLayers shall go on from them

    @property
    def lengths(self) -> Tensor:
        """Tokens of prompt and response together, [B] long."""
        return self.prompt_lengths + self.mask.sum(dim=1)

    def select(self, indices: Tensor) -> "Episodes":
        """The episodes at `indices` [b], padded only to the longest of them."""
        prompt_lengths, mask = self.prompt_lengths[indices], self.mask[indices]
        response_lengths = mask.sum(dim=1)
        longest, longest_response = torch.stack([prompt_lengths + response_lengths, response_lengths]).amax(1).tolist()
        states = None if self.states is None else self.states[indices, :longest]
        return Episodes(self.ids[indices, :longest], prompt_lengths, mask[:, :longest_response], states)

    def each(self, change: Callable[[Tensor], Tensor]) -> "Episodes":
        """Episodes of what `change` makes of each tensor."""
        states = None if self.states is None else change(self.states)
        return Episodes(change(self.ids), change(self.prompt_lengths), change(self.mask), states)

    def split(self, token_budget: int) -> list[Tensor]:
        """Indices [b] of micro-batches: rows of like length, padded size within the budget, longest first."""
        groups = micro_batches(self.lengths.tolist(), token_budget)
        return [torch.tensor(group, device=self.ids.device) for group in groups]

    def predicting(self) -> tuple[Tensor, Tensor]:
        """Row [N] and position [N] of the token before each response token: where a model predicts it."""
        row, offset = self.mask.nonzero(as_tuple=True)
        return row, self.prompt_lengths[row] - 1 + offset

    def response_tokens(self) -> Tensor:
        """The response tokens, [N] long."""
        row, position = self.predicting()
        return self.ids[row, position + 1]


def join(prompts: Sequence[Sequence[int]], response_ids: Tensor, mask: Tensor, longest_prompt: int = 0) -> Episodes:
    """Episodes of the prompts and their responses: response_ids [B, R] where mask [B, R] is True.

    Rows are as long as the longest prompt, or `longest_prompt` tokens, and R together.
    """
    prompt_ids, _ = pad_right(prompts, 0)
    prompt_lengths = torch.tensor([len(prompt) for prompt in prompts], device=mask.device)
    prompt_ids = pad(prompt_ids, (0, max(0, longest_prompt - prompt_ids.shape[1])))
    ids = pad(prompt_ids.to(mask.device), (0, mask.shape[1]))
    row, offset = mask.nonzero(as_tuple=True)
    ids[row, prompt_lengths[row] + offset] = response_ids[row, offset]
    return Episodes(ids, prompt_lengths, mask)


def token_logprobs(logits: Tensor, tokens: Tensor, temperature: float) -> Tensor:
    """log softmax(logits / temperature) at the tokens: [N] float32, of logits [N, V] and tokens [N]."""
    return -cross_entropy(logits.float() / temperature, tokens, reduction="none")


def predicting_states(transformer: nn.Module, episodes: Episodes) -> Tensor:
    """The last hidden states [N, D] at the tokens before the response tokens, differentiable.

    `transformer` is a whole one, or UpperLayers of episodes that hold their states.
    """
    return _states_at(transformer, episodes, *episodes.predicting())


def logprobs_of(model: PreTrainedModel, episodes: Episodes, temperature: float) -> Tensor:
    """Logprobs [N] of the response tokens under the language model, differentiable."""
    logits = model.get_output_embeddings()(predicting_states(backbone(model), episodes))
    return token_logprobs(logits, episodes.response_tokens(), temperature)


def values_of(model: ScalarModel, episodes: Episodes) -> Tensor:
    """Values [N] before each response token is chosen, differentiable."""
    return model.head(predicting_states(model.backbone, episodes))


def scores_of(model: ScalarModel, episodes: Episodes) -> Tensor:
    """The scalar model's numbers [B] at the last token of each response."""
    last = episodes.lengths - 1
    return model.head(_states_at(model.backbone, episodes, torch.arange(len(last), device=last.device), last))


@torch.no_grad()
def with_states(lower: LowerLayers, episodes: Episodes, token_budget: int) -> Episodes:
    """The episodes with what the lower layers make of them, computed in micro-batches; 0 at padding."""
    groups = episodes.split(token_budget)
    parts = [lower(episodes.select(indices).ids) for indices in groups]
    states = parts[0].new_zeros(*episodes.ids.shape, parts[0].shape[-1])
    for indices, part in zip(groups, parts, strict=True):
        states[indices, : part.shape[1]] = part
    return replace(episodes, states=states)


@torch.no_grad()
def measure_tokens(measure: Callable[[Episodes], Tensor], episodes: Episodes, token_budget: int) -> Tensor:
    """What `measure` gives for each response token of the micro-batches, [B, R] float32; 0 at padding.

    Where it gives K numbers for each of N tokens, as [K, N], these are [K, B, R].
    """
    groups = episodes.split(token_budget)
    parts = [measure(episodes.select(indices)) for indices in groups]
    result = torch.zeros(*parts[0].shape[:-1], *episodes.mask.shape, device=episodes.ids.device)
    for indices, part in zip(groups, parts, strict=True):
        row, offset = episodes.mask[indices].nonzero(as_tuple=True)
        result[..., indices[row], offset] = part.float()
    return result


@torch.no_grad()
def measure_rows(measure: Callable[[Episodes], Tensor], episodes: Episodes, token_budget: int) -> Tensor:
    """What `measure` gives for each episode of the micro-batches, [B] float32."""
    result = torch.zeros(len(episodes.ids), device=episodes.ids.device)
    for indices in episodes.split(token_budget):
        result[indices] = measure(episodes.select(indices))
    return result


def _states_at(transformer: nn.Module, episodes: Episodes, row: Tensor, position: Tensor) -> Tensor:
    """The last hidden states [N, D] at rows and positions [N]."""
    with read_only_at(transformer, row, position):
        if isinstance(transformer, UpperLayers):
            states = transformer(episodes.states)
        else:
            states = transformer(input_ids=episodes.ids, use_cache=False).last_hidden_state
    return states[row, position]
