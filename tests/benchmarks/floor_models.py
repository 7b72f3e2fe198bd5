"""The models of the floor, held in the ways that our_worker.py names; see floor.py.

Shapes: B episodes, N tokens of all rows, M response tokens of all rows, T tokens of a row, D hidden size, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import linear

from tests.benchmarks.plain_llama import Pack, Shape, Weights, fuse, trunk
from tests.benchmarks.plain_lora import make_adapter
from tests.benchmarks.workloads import LEARNING_RATE, LORA_RANK, Workload

Term = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Batch:
    """Some rows of a rollout, packed."""

    chosen: Sequence[int]  # the rows' places in the rollout
    pack: Pack


class SeparateModels:
    """Policy, value model, reference and reward model by themselves; policy and value model are trained whole."""

    def __init__(self, folder: Path, shape: Shape) -> None:
        self.shape = shape
        self.policy, self.value, self.reward = (
            fuse(load_file(folder / name / "model.safetensors"), shape) for name in ("policy", "value", "reward_model")
        )
        self.frozen = {name: tensor.clone() for name, tensor in self.policy.items()}
        trained = [*self.policy.values(), *self.value.values()]
        self.adamw = torch.optim.AdamW([tensor.requires_grad_() for tensor in trained], LEARNING_RATE, fused=True)

    def sampling_weights(self) -> Weights:
        """Of the policy, for decoding."""
        return self.policy

    def prepare(self, whole: Sequence[Batch]) -> None:
        """Nothing is shared between forwards."""

    def reference(self, batch: Batch) -> Tensor:
        """Logits [M, V] of the reference."""
        return _head(trunk(self.frozen, self.shape, batch.pack), self.frozen)

    def values(self, batch: Batch, states: Tensor) -> Tensor:
        """Values [M]; the policy's `states` say nothing of them."""
        return _head(trunk(self.value, self.shape, batch.pack), self.value).squeeze(1)

    def scores(self, batch: Batch) -> Tensor:
        """Scores [B] at the wanted positions."""
        return _head(trunk(self.reward, self.shape, batch.pack), self.reward).squeeze(1)

    def backward(self, batch: Batch, policy_term: Term, value_term: Term) -> None:
        """Add the gradients of policy_term(logits [M, V]) and value_term(values [M])."""
        policy_term(_head(trunk(self.policy, self.shape, batch.pack), self.policy)).backward()
        value_term(_head(trunk(self.value, self.shape, batch.pack), self.value).squeeze(1)).backward()

    def step(self) -> None:
        """Take an optimizer step."""
        self.adamw.step()
        self.adamw.zero_grad()


class SharedModels:
    """Adapters on one frozen base, a value head on the policy's hidden states; what is trained is merged at each step.

    The adapters stand in the last `num_adapted` layers; where these are not all, what the lower ones say of a rollout
    is computed once.
    """

    def __init__(self, folder: Path, shape: Shape, num_adapted: int) -> None:
        self.shape, self.first = shape, shape.num_layers - num_adapted
        self.lower, self.upper = range(self.first), range(self.first, shape.num_layers)
        self.base = fuse(load_file(folder / "policy" / "model.safetensors"), shape)
        self.adapter, reward = (
            make_adapter(self.base, shape, self.upper, LORA_RANK, zero=zero) for zero in (True, False)
        )
        self.policy, self.reward = self.adapter.merged(self.base), reward.merged(self.base)
        hidden_size = self.base["embed"].shape[1]
        self.reward_head, self.value_head = torch.randn(1, hidden_size), torch.zeros(1, hidden_size).requires_grad_()
        trained = [*self.adapter.parameters(), self.value_head]
        self.adamw = torch.optim.AdamW(trained, LEARNING_RATE, fused=True)
        self.kept: dict[int, Tensor] = {}  # [T, D] of each row: what goes into the first adapted layer

    def sampling_weights(self) -> Weights:
        """Of the policy, for decoding."""
        return self.policy

    def prepare(self, whole: Sequence[Batch]) -> None:
        """Run the lower layers on whole rows, once a rollout."""
        for batch in whole if self.lower else ():
            rows = trunk(self.base, self.shape, batch.pack, self.lower).split(batch.pack.lengths)
            self.kept.update(zip(batch.chosen, rows, strict=True))

    def reference(self, batch: Batch) -> Tensor:
        """Logits [M, V] of the reference."""
        return _head(self._upper(self.base, batch), self.base)

    def values(self, batch: Batch, states: Tensor) -> Tensor:
        """Values [M] from the policy's states [M, D]."""
        return linear(states, self.value_head).squeeze(1)

    def scores(self, batch: Batch) -> Tensor:
        """Scores [B] at the wanted positions."""
        return linear(self._upper(self.reward, batch), self.reward_head).squeeze(1)

    def backward(self, batch: Batch, policy_term: Term, value_term: Term) -> None:
        """Add the gradients of policy_term(logits [M, V]) and value_term(values [M])."""
        states = self._upper(self.policy, batch, lambda x, name: self.adapter.apply(self.policy, x, name))
        values = linear(states, self.value_head).squeeze(1)
        (policy_term(_head(states, self.base)) + value_term(values)).backward()

    def step(self) -> None:
        """Take an optimizer step and merge the new adapter."""
        self.adamw.step()
        self.adamw.zero_grad()
        self.policy = self.adapter.merged(self.base)

    def _upper(self, weights: Weights, batch: Batch, apply: Callable[[Tensor, str], Tensor] | None = None) -> Tensor:
        states = None
        if self.lower:
            lengths = zip(batch.chosen, batch.pack.lengths, strict=True)
            states = torch.cat([self.kept[row][:length] for row, length in lengths])
        return trunk(weights, self.shape, batch.pack, self.upper, states, apply)


Models = SeparateModels | SharedModels


def load_models(mode: str, folder: Path, workload: Workload, shape: Shape) -> Models:
    """The models of the workload in the folder, held as the mode says."""
    if mode == "separate":
        return SeparateModels(folder, shape)
    return SharedModels(folder, shape, workload.trainable_layers if mode == "cached" else shape.num_layers)


def _head(states: Tensor, weights: Weights) -> Tensor:
    return linear(states, weights["head"])
