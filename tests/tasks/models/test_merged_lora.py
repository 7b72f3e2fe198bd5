"""Against PEFT's own forward."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from tasks.config import LoraConfig
from tasks.models.adapters import add_lora, lora_layers, use_adapter
from tasks.models.merged_lora import MergedLinear, merge_in_forward
from tests.tasks.ppo.tiny import make_model

IDS = torch.randint(3, 24, (8, 12), generator=torch.Generator().manual_seed(0))  # more tokens than any layer is wide


def adapted(dtype: torch.dtype = torch.float32, **options) -> nn.Module:
    """A model with two adapters whose matrices are both not zero."""
    torch.manual_seed(0)
    model = add_lora(make_model().to(dtype), LoraConfig(r=3, alpha=5, **options), ["one", "two"])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    return model


def states_and_gradients(model: nn.Module, adapter: str | None) -> tuple[Tensor, dict[str, Tensor]]:
    use_adapter(lora_layers(model), adapter)
    embeddings = model.get_input_embeddings()(IDS).detach().requires_grad_(True)
    states = model.get_base_model().model(inputs_embeds=embeddings).last_hidden_state
    (states * torch.linspace(-1, 1, states.numel()).view_as(states)).sum().backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad()
    return states.detach(), {**gradients, "embeddings": embeddings.grad}


@pytest.fixture
def products(monkeypatch) -> list[tuple[int, ...]]:
    """The shapes of what MergedLinear was given, filled while the test runs."""
    shapes: list[tuple[int, ...]] = []
    apply = MergedLinear.apply
    monkeypatch.setattr(MergedLinear, "apply", lambda x, *rest: shapes.append(tuple(x.shape)) or apply(x, *rest))
    return shapes


@pytest.mark.parametrize("adapter", ["one", "two", None])
def test_outputs_and_gradients_are_those_of_peft(adapter, products) -> None:
    model = adapted()
    expected, expected_gradients = states_and_gradients(model, adapter)
    merge_in_forward(lora_layers(model))
    states, gradients = states_and_gradients(model, adapter)
    assert_close(states, expected, rtol=1e-4, atol=1e-5)
    assert gradients.keys() == expected_gradients.keys()
    largest = max(gradient.abs().max().item() for gradient in expected_gradients.values())
    for name, gradient in gradients.items():
        assert_close(gradient, expected_gradients[name], rtol=1e-3, atol=1e-6 * largest)
    assert len(products) == (0 if adapter is None else 2 * 7)


def test_a_frozen_adapter_passes_the_gradient_on_and_gets_none() -> None:
    model = adapted()
    merge_in_forward(lora_layers(model))
    _, expected = states_and_gradients(model, "one")
    model.requires_grad_(False)
    _, gradients = states_and_gradients(model, "one")
    assert gradients.keys() == {"embeddings"}
    assert_close(gradients["embeddings"], expected["embeddings"])


def test_the_gradients_are_those_of_finite_differences() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(4, 5).double().requires_grad_(False)
    x, a, b = (torch.randn(shape).double().requires_grad_(True) for shape in ((2, 3, 4), (2, 4), (5, 2)))
    expected = linear(x) + 0.5 * x @ a.T @ b.T
    assert_close(MergedLinear.apply(x, linear.weight, linear.bias, a, b, 0.5), expected)
    assert torch.autograd.gradcheck(
        lambda *parts: MergedLinear.apply(parts[0], linear.weight, linear.bias, *parts[1:], 0.5), (x, a, b)
    )


def test_a_few_tokens_go_through_the_two_small_products(products) -> None:
    model = adapted()
    merge_in_forward(lora_layers(model))
    with torch.no_grad():
        model(IDS[:1, :1])
    assert products == []


def test_a_copy_of_the_model_uses_its_own_weights() -> None:
    model = adapted()
    merge_in_forward(lora_layers(model))
    twin = copy.deepcopy(model)
    before, _ = states_and_gradients(twin, "one")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    after, _ = states_and_gradients(twin, "one")
    assert_close(after, before, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("dtype", "options"), [("bfloat16", {}), ("float32", {"dropout": 0.5}), ("float32", {"use_dora": True})]
)
def test_layers_that_are_not_plain_stay_as_they_are(dtype, options, products) -> None:
    model = adapted(getattr(torch, dtype), **options)
    merge_in_forward(lora_layers(model))
    with torch.no_grad():
        model(IDS)
    assert products == []
