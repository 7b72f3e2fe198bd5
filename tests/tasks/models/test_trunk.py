import pytest
import torch
from torch.testing import assert_close
from transformers import AutoConfig, AutoModel, GPT2Config, GPT2Model

from tasks.config import LoraConfig
from tasks.models.adapters import add_lora
from tasks.models.trunk import LowerLayers, UpperLayers, can_be_cut, num_frozen_layers
from tests.tasks.ppo.tiny import make_model

IDS = torch.tensor([[3, 9, 4, 17, 22, 5]])
SIZES = {
    "vocab_size": 24,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "pad_token_id": 0,
}
SLIDING = {"layer_types": ["full_attention", "sliding_attention"] * 2, "sliding_window": 2, "use_sliding_window": True}


def transformer(model_type: str, **options) -> torch.nn.Module:
    torch.manual_seed(0)
    return AutoModel.from_config(AutoConfig.for_model(model_type, **SIZES, **options)).eval()


@pytest.mark.parametrize("first", [1, 2, 3])
@pytest.mark.parametrize(("model_type", "options"), [("llama", {}), ("qwen3", SLIDING), ("gemma3_text", {})])
def test_upper_layers_go_on_from_the_states_of_the_lower_ones(model_type, options, first) -> None:
    whole = transformer(model_type, **options)
    states = LowerLayers(whole, first)(IDS)
    expected = whole(input_ids=IDS, output_hidden_states=True)
    assert_close(states, expected.hidden_states[first])
    assert_close(UpperLayers(whole, first)(states), expected.last_hidden_state)
    assert can_be_cut(whole)
    assert whole.config.num_hidden_layers == len(whole.layers) == 4


def test_learned_positions_would_be_added_twice() -> None:
    assert not can_be_cut(GPT2Model(GPT2Config(vocab_size=24, n_embd=32, n_layer=2, n_head=2)).eval())


def test_layers_below_the_first_trained_one_are_frozen() -> None:
    whole = transformer("llama").requires_grad_(False)
    assert num_frozen_layers(whole) == 4
    whole.norm.requires_grad_(True)
    assert num_frozen_layers(whole) == 4
    whole.layers[2].mlp.requires_grad_(True)
    assert num_frozen_layers(whole) == 2
    whole.embed_tokens.requires_grad_(True)
    assert num_frozen_layers(whole) == 0


def test_adapters_are_switched_in_the_upper_layers_too() -> None:
    adapted = add_lora(make_model(), LoraConfig(r=4), ["policy"], trainable_layers=1)
    whole = adapted.get_base_model().model
    assert num_frozen_layers(whole) == 1
    upper, states = UpperLayers(whole, 1), LowerLayers(whole, 1)(IDS)
    before = upper(states)
    with torch.no_grad():
        whole.layers[1].mlp.down_proj.lora_B["policy"].weight.fill_(0.1)
    assert not torch.allclose(upper(states), before)
    assert_close(upper(states), whole(input_ids=IDS).last_hidden_state)
