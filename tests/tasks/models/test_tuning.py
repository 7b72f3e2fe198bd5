"""What is trained under each tuning, and gradient checkpointing, which must change memory only."""

import copy

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from tasks.config import LoraConfig, SamplingConfig
from tasks.episodes import join, logprobs_of, values_of
from tasks.errors import InputError
from tasks.generation import generate, uniform_numbers
from tasks.models import tuning
from tasks.models.adapters import adapter_parameters, add_lora, lora_layers, use_adapter
from tasks.models.modeling import ScalarModel, backbone, make_scalar_head
from tasks.models.tuning import (
    decoder_layers,
    enable_gradient_checkpointing,
    last_layers,
    load_for_training,
    trainable_parameters,
)
from tests.tasks.tiny_models import EOS_ID, HIDDEN, PAD_ID, make_model, write_model

NUM_LAYER_TENSORS = 9  # of a Llama layer: seven matrices and two norms
EPISODES = join([[3, 5], [4]], torch.tensor([[7, 9, 11], [6, 8, 10]]), torch.ones(2, 3, dtype=torch.bool))


def trainable(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def gradients(parameters):
    """The gradients so far in one row, taken away."""
    flat = torch.cat([parameter.grad.flatten() for parameter in parameters])
    for parameter in parameters:
        parameter.grad = None
    return flat


def policy_loss(model):
    return logprobs_of(model, EPISODES, 1.0).square().sum()


def test_full_trains_every_weight_and_a_tied_one_once():
    model = make_model(tie_word_embeddings=True)
    names = set(trainable_parameters(model, "full", None))
    assert names == trainable(model) == {name for name, _ in model.named_parameters()}
    assert len(names) == 2 * NUM_LAYER_TENSORS + 2  # the embedding, which is the head, and the final norm


@pytest.mark.parametrize("count", [1, 2])
def test_freeze_trains_exactly_the_last_layers(count):
    model = make_model(num_hidden_layers=3)
    parameters = trainable_parameters(model, "freeze", count)
    assert trainable(model) == set(parameters)
    assert len(parameters) == count * NUM_LAYER_TENSORS
    assert all(name.startswith(("model.layers.1.", "model.layers.2.")[2 - count :]) for name in parameters)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    policy_loss(model).backward()
    torch.optim.SGD(model.parameters(), lr=0.01).step()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == set(parameters)


def test_layers_are_found_in_other_architectures_backbones_and_under_adapters():
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=19, n_embd=16, n_layer=3, n_head=2))
    assert decoder_layers(gpt2)[0] == "transformer.h"
    assert last_layers(gpt2, 2) == [1, 2]
    scalar = ScalarModel(backbone(make_model()), make_scalar_head(torch.ones(1, HIDDEN)))
    assert decoder_layers(scalar)[0] == "backbone.layers"
    model = make_model()
    layers = list(model.model.layers)
    assert list(decoder_layers(add_lora(model, LoraConfig(r=2), ["x"]))[1]) == layers


def test_more_layers_than_there_are_and_a_model_without_a_list_of_layers_are_refused():
    with pytest.raises(InputError, match="trainable_layers 3: the model has 2 layers"):
        last_layers(make_model(), 3)
    model = make_model()
    model.config.num_hidden_layers = 5
    with pytest.raises(InputError, match="its 5 layers are in no list of modules"):
        last_layers(model, 1)


def test_a_model_is_loaded_in_its_precision_and_in_evaluation_mode(tmp_path):
    model = load_for_training(write_model(tmp_path), "bfloat16", "freeze")
    assert model.dtype == torch.bfloat16
    assert not model.training


def test_qlora_without_bitsandbytes_is_refused_with_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(tuning, "find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"needs bitsandbytes.*pip install 'alignment\[qlora\]'"):
        load_for_training(write_model(tmp_path), "float32", "qlora")


def test_checkpointing_runs_each_layer_again_in_the_backward_and_changes_no_gradient():
    model, calls = make_model(), []
    policy_loss(model).backward()
    expected = gradients(list(model.parameters()))
    enable_gradient_checkpointing(model)
    for layer in model.model.layers:
        layer.mlp.register_forward_pre_hook(lambda module, _: calls.append(module))
    loss = policy_loss(model)
    assert len(calls) == 2
    loss.backward()
    assert len(calls) == 4
    assert torch.equal(gradients(list(model.parameters())), expected)


def test_checkpointing_keeps_one_tensor_a_layer():
    def kept(model):
        numbers = {}
        weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

        def keep(tensor):
            numbers[tensor.untyped_storage().data_ptr()] = tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            _hold = backbone(model)(input_ids=EPISODES.ids, use_cache=False).last_hidden_state
        return sum(size for pointer, size in numbers.items() if pointer not in weights)

    model = make_model(num_hidden_layers=6)
    without = kept(model)
    enable_gradient_checkpointing(model)
    assert kept(model) < without / 4


def test_layers_run_once_and_with_their_cache_where_no_gradient_is_asked_for(monkeypatch):
    model, calls = make_model(), []
    options = {"uniforms": uniform_numbers(2, 5, 0), "stop_ids": [EOS_ID], "pad_token_id": PAD_ID}
    prompts, sampling = [[3, 5, 7], [4]], SamplingConfig(response_length=5, min_new_tokens=5)
    expected = generate(model, prompts, sampling, **options)
    enable_gradient_checkpointing(model)
    monkeypatch.setattr(tuning, "checkpoint", None)
    model.model.layers[0].mlp.register_forward_hook(lambda _, inputs, __: calls.append(inputs[0].shape[1]))
    responses = generate(model, prompts, sampling, **options)
    assert torch.equal(responses.ids, expected.ids)
    assert calls == [3, 1, 1, 1, 1]


def test_a_copy_of_a_checkpointed_model_runs_its_own_layers():
    model = make_model()
    enable_gradient_checkpointing(model)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    torch.testing.assert_close(policy_loss(other), policy_loss(make_model()))
    policy_loss(other).backward()
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(parameter.grad is not None for parameter in other.parameters())


@pytest.fixture(params=[LoraConfig(r=2), LoraConfig(r=2, use_dora=True)], ids=["lora", "dora"])
def shared_base(request):
    """Policy and value model as adapters of one base, with what they say and what they train."""
    torch.manual_seed(1)
    adapted = add_lora(make_model(), request.param, ["policy", "value"]).eval()
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    value = ScalarModel(backbone(adapted), make_scalar_head(torch.randn(1, HIDDEN)).requires_grad_(False))
    losses = {
        "policy": lambda: policy_loss(adapted.get_base_model()),
        "value": lambda: values_of(value, EPISODES).square().sum(),
    }
    parameters = [*adapter_parameters(adapted, "policy").values(), *adapter_parameters(adapted, "value").values()]
    return adapted, losses, parameters


def one_after_the_other(adapted, losses, parameters):
    for name, loss in losses.items():
        use_adapter(lora_layers(adapted), name)
        loss().backward()
    return gradients(parameters)


def test_checkpointing_changes_no_gradient_of_adapters_on_one_base(shared_base):
    expected = one_after_the_other(*shared_base)
    enable_gradient_checkpointing(shared_base[0])
    torch.testing.assert_close(one_after_the_other(*shared_base), expected, rtol=1e-4, atol=1e-3)


def test_a_switch_between_forward_and_backward_would_give_wrong_gradients(shared_base):
    adapted, losses, parameters = shared_base
    num_policy = sum(parameter.numel() for parameter in adapter_parameters(adapted, "policy").values())
    expected = one_after_the_other(*shared_base)[:num_policy]
    enable_gradient_checkpointing(adapted)
    use_adapter(lora_layers(adapted), "policy")
    policy = losses["policy"]()
    use_adapter(lora_layers(adapted), "value")
    (policy + losses["value"]()).backward()
    assert (gradients(parameters)[:num_policy] - expected).norm() > 0.5 * expected.norm()
