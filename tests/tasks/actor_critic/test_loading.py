import copy
import shutil
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from transformers import GPT2Config, GPT2LMHeadModel

from tasks.actor_critic.config import ActorCriticConfig
from tasks.actor_critic.folder import load_actor_critic
from tasks.actor_critic.loading import _check_head, load_models
from tasks.actor_critic.models import POLICY, VALUE, Models
from tasks.errors import InputError
from tasks.models.modeling import load_causal_lm, load_reward_model
from tests.tasks.ppo.tiny import make_model, make_tokenizer, write_policy

CPU = torch.device("cpu")
IDS = torch.tensor([[3, 9, 4, 17, 22, 5]])
FORMS: dict[str, dict[str, Any]] = {
    "lora": {},
    "lora-head": {"value_model": "head"},
    "lora-separate": {"value_model": "separate"},
    "lora-last": {"trainable_layers": 1},
    "full": {"tuning": "full"},
    "full-head": {"tuning": "full", "value_model": "head"},
    "freeze": {"tuning": "freeze", "trainable_layers": 1},
    "freeze-head": {"tuning": "freeze", "trainable_layers": 1, "value_model": "head"},
    "full-averaged": {"tuning": "full", "reference_decay": 0.5},
    "lora-averaged": {
        "reference_decay": 0.5,
        "lora": {"r": 4, "target_modules": ["q_proj", "down_proj", "embed_tokens"]},
    },
}
CASES = [(form, reward) for form in FORMS for reward in (None, "reward_model", "reward_adapter")]


def load(world, form: str, reward: str | None = None, **changes: Any) -> Models:
    config = ActorCriticConfig.model_validate({"lora": {"r": 4}} | FORMS[form] | changes)
    inputs = {"policy": world["policy"]} | ({"reward_model": world[reward]} if reward else {})
    return load_models(config, inputs, CPU, seed=0)


def outputs(models: Models) -> dict[str, Tensor]:
    """What each model says; a shared base is switched before each."""
    said = {"policy": models.policy()(IDS).logits, "reference": models.reference()(IDS).logits}
    said["value"] = models.value()(IDS)
    if models.reward_model is not None:
        said["reward"] = models.reward()(IDS)
    return {name: tensor.detach() for name, tensor in said.items()}


@pytest.mark.parametrize(("form", "reward"), CASES)
def test_each_model_starts_as_what_it_was_made_of(world, form, reward) -> None:
    said = outputs(load(world, form, reward))
    logits = load_causal_lm(world["policy"])(IDS).logits
    assert_close(said["policy"], logits)
    assert_close(said["reference"], logits)
    scores = None if reward is None else load_reward_model(world[reward], world["policy"])(IDS)
    assert ("reward" in said) == (reward == "reward_adapter" and form.startswith("lora"))
    if "reward" in said:
        assert_close(said["reward"], scores, rtol=1e-4, atol=1e-5)
    own_adapter = form in ("lora", "lora-last", "lora-averaged")
    starts_as_reward = reward == "reward_adapter" if own_adapter else reward is not None and "head" not in form
    assert_close(said["value"], scores if starts_as_reward else torch.zeros(1, 6), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("form", "reward"), CASES)
def test_training_one_model_moves_every_part_of_it_and_no_other_model(world, form, reward) -> None:
    loaded = load(world, form, reward)
    torch.nn.init.normal_(loaded.value_model.head.weight)  # one of zeros would not show that its trunk moved
    for part, run in ((POLICY, lambda: loaded.policy()(IDS).logits), (VALUE, lambda: loaded.value()(IDS))):
        for _ in range(3):  # an adapter's one matrix moves only once its other one is not zero, a backbone its head
            before = outputs(loaded)
            old = {name: copy.deepcopy(parameter.data) for name, parameter in loaded.trainable[part].items()}
            (run() - 1).square().sum().backward()
            for name, parameter in loaded.trainable[part].items():
                assert parameter.grad is not None, name
                parameter.data -= 1e-3 * parameter.grad.sign()
            for module in (loaded.language_model, loaded.reference_model, loaded.value_model):
                module.zero_grad()
        after = outputs(loaded)
        moved = [name for name in after if not torch.equal(before[name], after[name])]
        assert moved == (["policy", "value"] if part == POLICY and "head" in form else [part])
        assert all(not torch.equal(old[name], tensor) for name, tensor in loaded.trainable[part].items())


@pytest.mark.parametrize(
    ("form", "layers"),
    [("freeze", {"1"}), ("lora-last", {"1"}), ("lora", {"0", "1"}), ("full", {"0", "1"})],
)
def test_only_the_last_layers_are_trained_where_that_was_asked(world, form, layers) -> None:
    for part in load(world, form).trainable.values():
        found = {name.split("layers.")[1].split(".")[0] for name in part if "layers." in name}
        assert found == layers
    others = {name for name in load(world, form).trainable[POLICY] if "layers." not in name}
    assert bool(others) == (form == "full")


@pytest.mark.parametrize("form", FORMS)
def test_what_was_saved_can_be_started_from(world, tmp_path, form) -> None:
    loaded = load(world, form, "reward_adapter")
    with torch.no_grad():
        for part in loaded.trainable.values():
            for parameter in part.values():
                parameter.add_(0.05)
    loaded.save(tmp_path, make_tokenizer(), {"iterations": 7})
    saved = load_actor_critic(tmp_path)
    assert saved.tuning == ("lora" if "lora" in form else "full")
    assert saved.details["iterations"] == 7
    starts = {"start_policy": str(tmp_path)} | ({} if form == "lora-separate" else {"start_value": str(tmp_path)})
    config = ActorCriticConfig.model_validate({"lora": {"r": 4}} | FORMS[form] | starts)
    folders = {"policy": world["policy"]} | dict.fromkeys(starts, tmp_path)
    if form == "lora-separate":
        return  # its value model's base is not in the folder
    again, then = outputs(load_models(config, folders, CPU, seed=5)), outputs(loaded)
    assert_close(again["policy"], then["policy"])
    assert_close(again["value"], then["value"])
    assert_close(again["reference"], then["reference"] if "averaged" not in form else again["policy"])


def test_the_policy_starts_from_another_model_while_the_reference_stays(world, tmp_path) -> None:
    other = write_policy(tmp_path / "other")
    start = make_model(seed=4)
    start.save_pretrained(other)
    config = ActorCriticConfig(tuning="full", start_policy=str(other))
    said = outputs(load_models(config, {"policy": world["policy"], "start_policy": other}, CPU, seed=0))
    assert_close(said["policy"], start(IDS).logits)
    assert_close(said["reference"], load_causal_lm(world["policy"])(IDS).logits)


def test_another_reference_model_is_taken_as_it_is(world, tmp_path) -> None:
    other = write_policy(tmp_path / "other")
    make_model(seed=4).save_pretrained(other)
    for tuning in ("lora", "full"):
        config = ActorCriticConfig(tuning=tuning, reference_model=str(other))
        said = outputs(load_models(config, {"policy": world["policy"], "reference": other}, CPU, seed=0))
        assert_close(said["reference"], make_model(seed=4)(IDS).logits)


@pytest.mark.parametrize("form", ["full", "lora", "lora-head"])
def test_the_value_model_starts_at_zero_on_demand(world, form) -> None:
    loaded = load(world, form, "reward_adapter", value_init="base")
    assert not loaded.value()(IDS).any()


@pytest.mark.parametrize("form", ["full-averaged", "lora-averaged"])
def test_an_averaged_reference_follows_the_policy_by_the_decay(world, form) -> None:
    loaded = load(world, form)
    start = outputs(loaded)["reference"]
    loaded.move_reference(0.5)
    assert_close(outputs(loaded)["reference"], start)
    old = {name: parameter.detach().clone() for name, parameter in loaded.trainable[POLICY].items()}
    with torch.no_grad():
        for parameter in loaded.trainable[POLICY].values():
            parameter.add_(0.25)
    for turn in (1, 2):  # 1 - 0.5 of the way, then half of what is left
        loaded.move_reference(0.5)
        for name, average in loaded.averages.items():
            assert_close(average, old[name] + 0.25 * (1 - 0.5**turn))
            assert_close(loaded.averaged[name].detach(), average)
    assert not torch.equal(outputs(loaded)["reference"], start)


def test_a_frozen_copy_shares_the_layers_that_never_change(world) -> None:
    loaded = load(world, "freeze")
    policy, reference = (dict(m.named_parameters()) for m in (loaded.language_model, loaded.reference_model))
    shared = {name for name in policy if policy[name] is reference[name]}
    assert shared == set(policy) - set(loaded.trainable[POLICY])


@pytest.mark.parametrize("form", ["lora", "lora-averaged", "full", "freeze-head"])
def test_all_models_have_one_dtype_and_adapters_are_float32(world, form) -> None:
    loaded = load(world, form, "reward_adapter", dtype="bfloat16")
    for model in (loaded.language_model, loaded.reference_model, loaded.value_model.backbone):
        dtypes = {parameter.dtype for name, parameter in model.named_parameters() if "lora_" not in name}
        assert dtypes == {torch.bfloat16}
    if form.startswith("lora"):
        assert {p.dtype for part in loaded.trainable.values() for p in part.values()} == {torch.float32}


def test_starts_of_the_wrong_kind_are_refused(world) -> None:
    def refused(message: str, inputs: dict[str, Any], **options: Any) -> None:
        config = ActorCriticConfig.model_validate(options)
        with pytest.raises(InputError, match=message):
            load_models(config, {"policy": world["policy"], **inputs}, CPU, seed=0)

    refused("there is no reward model. Set value_init to base", {}, value_init="reward_model")
    refused(
        "kind `reward_adapter`.*found a reward model",
        {"reward_model": world["reward_model"]},
        value_init="reward_model",
    )
    refused("found a causal language model", {"start_value": world["policy"]}, start_value="x")


def test_a_reward_model_of_other_tokens_is_no_start_for_the_value_model(world, tmp_path) -> None:
    other = shutil.copytree(world["reward_model"], tmp_path / "reward_model")
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["w99"])
    tokenizer.save_pretrained(other)
    inputs = {"policy": world["policy"], "reward_model": other}
    loaded = load_models(ActorCriticConfig(tuning="full"), inputs, CPU, seed=0)
    assert not loaded.value()(IDS).any()
    with pytest.raises(InputError, match="another tokenizer than the policy, so the value model cannot start"):
        load_models(ActorCriticConfig(tuning="full", value_init="reward_model"), inputs, CPU, seed=0)


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
