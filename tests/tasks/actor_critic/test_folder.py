"""What PPO saves is what is loaded again."""

import pytest
import torch

from tasks.actor_critic.folder import load_actor_critic, save_actor_critic
from tasks.config import LoraConfig
from tasks.errors import InputError
from tasks.models.adapters import adapter_state, add_lora
from tasks.models.modeling import load_causal_lm
from tests.tasks.tiny_models import make_model, make_tokenizer


def test_a_full_actor_critic_returns_its_tensors(tmp_path):
    model = make_model()
    value = {"head.weight": torch.ones(1, 16), "backbone.norm.weight": torch.ones(16)}
    save_actor_critic(tmp_path, model, value, make_tokenizer(), details={"iteration": 7})
    loaded = load_actor_critic(tmp_path)
    assert (loaded.tuning, loaded.details["iteration"]) == ("full", 7)
    assert set(loaded.policy) == set(model.state_dict())
    assert set(loaded.value) == set(value)


def test_tied_weights_are_saved_once(tmp_path):
    save_actor_critic(tmp_path, make_model(tie_word_embeddings=True), {}, make_tokenizer())
    assert "lm_head.weight" not in load_actor_critic(tmp_path).policy


def test_an_adapters_actor_critic_holds_adapters_only(tmp_path):
    model = add_lora(make_model(), LoraConfig(r=2), ["policy", "value"])
    value = {**adapter_state(model, "value"), "head.weight": torch.ones(1, 16)}
    save_actor_critic(tmp_path, model, value, make_tokenizer(), adapter="policy")
    loaded = load_actor_critic(tmp_path)
    assert loaded.tuning == "lora"
    assert len(loaded.policy) == 2 * 7 * 2  # layers x linear modules of a Llama layer x (A, B)
    assert len(loaded.value) == 2 * 7 * 2 + 1
    torch.testing.assert_close(loaded.policy, adapter_state(model, "policy"), rtol=0, atol=0)


def test_what_ppo_saved_is_not_a_language_model(tmp_path):
    save_actor_critic(tmp_path, make_model(), {}, make_tokenizer())
    with pytest.raises(InputError, match="as PPO saves them"):
        load_causal_lm(tmp_path)
