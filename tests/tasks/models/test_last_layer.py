"""Sparing the last feed-forward block changes nothing that is read, and no gradient of it."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import GPT2Config, GPT2Model, MixtralConfig, MixtralModel, Qwen2Config, Qwen2Model

from tasks.models.last_layer import read_only_at
from tasks.models.modeling import backbone
from tasks.models.trunk import LowerLayers, UpperLayers
from tasks.models.tuning import enable_gradient_checkpointing
from tests.tasks.ppo.tiny import make_model

IDS = torch.tensor([[3, 4, 5, 6, 7], [8, 9, 10, 11, 12]])
ROW, POSITION = torch.tensor([0, 0, 1]), torch.tensor([2, 4, 1])
SIZES = {"vocab_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
WIDTHS = {"hidden_size": 32, "intermediate_size": 48, "num_key_value_heads": 1}


def llama() -> nn.Module:
    return backbone(make_model())


def qwen() -> nn.Module:
    return Qwen2Model(Qwen2Config(**SIZES, **WIDTHS)).eval()


def gpt2() -> nn.Module:
    return GPT2Model(GPT2Config(vocab_size=24, n_layer=2, n_head=2, n_embd=32)).eval()


def mixtral() -> nn.Module:
    return MixtralModel(MixtralConfig(**SIZES, **WIDTHS, num_local_experts=2)).eval()


def upper_layers() -> nn.Module:
    """The second layer of two, which takes the first one's states for its input."""
    model = llama()
    return WithIds(UpperLayers(model, 1), LowerLayers(model, 1)(IDS).detach())


class WithIds(nn.Module):
    """Upper layers, called like a whole transformer."""

    def __init__(self, upper: UpperLayers, states: Tensor) -> None:
        super().__init__()
        self.upper = upper
        self.register_buffer("states", states)

    def forward(self, input_ids: Tensor, use_cache: bool) -> Any:
        return SimpleNamespace(last_hidden_state=self.upper(self.states))


def read(transformer: nn.Module, *, sparing: bool) -> tuple[Tensor, list[Tensor | None], list[int]]:
    """The states at the positions, the gradients of their squares, and how many positions the last block saw."""
    seen: list[int] = []
    layers = next(module for module in transformer.modules() if isinstance(module, nn.ModuleList))
    hook = layers[-1].mlp.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0][..., 0].numel()))
    if sparing:
        with read_only_at(transformer, ROW, POSITION):
            states = transformer(input_ids=IDS, use_cache=False).last_hidden_state
    else:
        states = transformer(input_ids=IDS, use_cache=False).last_hidden_state
    states = states[ROW, POSITION]
    states.square().sum().backward()
    hook.remove()
    gradients = [parameter.grad for parameter in transformer.parameters()]
    transformer.zero_grad(set_to_none=True)
    return states.detach(), gradients, seen


@pytest.mark.parametrize("make", [llama, qwen, gpt2, upper_layers])
def test_what_is_read_and_its_gradients_stay(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    transformer = make().double()
    whole, spared = read(transformer, sparing=False), read(transformer, sparing=True)
    assert_close(spared[0], whole[0])
    for ours, expected in zip(spared[1], whole[1], strict=True):
        assert (ours is None) == (expected is None)
        if expected is not None:
            assert_close(ours, expected)
    assert (whole[2], spared[2]) == ([10], [3])
    assert read(transformer, sparing=False)[2] == [10]


def test_a_mixture_of_experts_is_left_whole() -> None:
    torch.manual_seed(0)
    assert read(mixtral(), sparing=True)[2] == [10]


def test_a_layer_that_runs_again_is_left_whole() -> None:
    transformer = llama()
    expected = read(transformer, sparing=False)
    enable_gradient_checkpointing(transformer)
    spared = read(transformer, sparing=True)
    assert set(spared[2]) == {10}
    assert torch.equal(spared[0], expected[0])
