import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from transformers import GPT2Config, GPT2LMHeadModel

from tasks.actor_critic import load_actor_critic
from tasks.errors import InputError
from tasks.modeling import load_causal_lm, load_reward_model
from tasks.ppo.config import PPOConfig
from tasks.ppo.models import POLICY, VALUE, Models, _check_head, load_models
from tests.tasks.ppo.tiny import make_tokenizer

IDS = torch.tensor([[3, 9, 4, 17, 22, 5]])
CASES = [(models, reward) for models in ("shared", "separate") for reward in (None, "reward_model", "reward_adapter")]


def load(world, models: str, reward: str | None, **options: Any) -> Models:
    config = PPOConfig(models=models, lora={"r": 4}, **options)
    return load_models(config, world["policy"], world[reward] if reward else None, torch.device("cpu"))


def outputs(models: Models) -> dict[str, Tensor]:
    """What each model says; a shared base is switched before each."""
    said = {"policy": models.policy()(IDS).logits, "reference": models.reference()(IDS).logits}
    said["value"] = models.value()(IDS)
    if models.reward_model is not None:
        said["reward"] = models.reward()(IDS)
    return {name: tensor.detach() for name, tensor in said.items()}


@pytest.mark.parametrize(("models", "reward"), CASES)
def test_each_model_starts_as_what_it_was_made_of(world, models, reward) -> None:
    said = outputs(load(world, models, reward))
    logits = load_causal_lm(world["policy"])(IDS).logits
    assert_close(said["policy"], logits)
    assert_close(said["reference"], logits)
    if reward is None:
        assert "reward" not in said
    else:
        assert_close(said["reward"], load_reward_model(world[reward], world["policy"])(IDS), rtol=1e-4, atol=1e-5)
    starts_as_reward = reward is not None and (models, reward) != ("shared", "reward_model")
    assert_close(said["value"], said["reward"] if starts_as_reward else torch.zeros(1, 6))


@pytest.mark.parametrize(("models", "reward"), CASES)
def test_training_one_model_moves_every_part_of_it_and_no_other_model(world, models, reward) -> None:
    loaded = load(world, models, reward)
    for part, run in ((POLICY, lambda: loaded.policy()(IDS).logits), (VALUE, lambda: loaded.value()(IDS))):
        for _ in range(3):  # an adapter's one matrix moves only once its other one is not zero, a backbone its head
            before = outputs(loaded)
            old = {name: copy.deepcopy(parameter.data) for name, parameter in loaded.trainable[part].items()}
            (run() - 1).square().sum().backward()
            for module in (loaded.language_model, loaded.reference_model, loaded.value_model, loaded.reward_model):
                for parameter in module.parameters() if module is not None else ():
                    if parameter.grad is not None:
                        parameter.data -= 1e-3 * parameter.grad.sign()
                        parameter.grad = None
        after = outputs(loaded)
        assert [name for name in after if not torch.equal(before[name], after[name])] == [part]
        assert all(not torch.equal(old[name], tensor) for name, tensor in loaded.trainable[part].items())


@pytest.mark.parametrize("models", ["shared", "separate"])
def test_what_is_saved_is_the_policy_and_the_value_model(world, tmp_path, models) -> None:
    loaded = load(world, models, "reward_adapter")
    with torch.no_grad():
        for parameter in loaded.trainable[POLICY].values():
            parameter.add_(0.5)
    loaded.save(tmp_path, make_tokenizer(), {"iterations": 7})
    saved = load_actor_critic(tmp_path)
    assert saved.tuning == {"shared": "lora", "separate": "full"}[models]
    assert saved.details["iterations"] == 7
    assert_close(saved.value["head.weight"], loaded.value_model.head.weight.detach())
    total = {
        part: sum(tensor.double().sum().item() for tensor in loaded.trainable[part].values())
        for part in (POLICY, VALUE)
    }
    assert sum(tensor.double().sum().item() for tensor in saved.policy.values()) == pytest.approx(total[POLICY])
    offset = loaded.value_model.head.offset.item()
    assert sum(tensor.double().sum().item() for tensor in saved.value.values()) == pytest.approx(total[VALUE] + offset)


def test_a_bfloat16_base_has_float32_adapters(world) -> None:
    loaded = load(world, "shared", "reward_adapter", dtype="bfloat16")
    assert loaded.language_model.get_output_embeddings().weight.dtype == torch.bfloat16
    assert {tensor.dtype for part in (POLICY, VALUE) for tensor in loaded.trainable[part].values()} == {torch.float32}


def test_a_model_that_scales_its_logits_is_refused() -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=24, n_embd=32, n_layer=1, n_head=2)).eval()
    _check_head(model)
    forward = model.forward

    def capped(**inputs: Any) -> Any:
        said = forward(**inputs)
        said.logits = said.logits.tanh() + 1
        return said

    model.forward = capped
    with pytest.raises(InputError, match="GPT2LMHeadModel changes its logits"):
        _check_head(model)
