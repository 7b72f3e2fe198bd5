"""Taking the policy out of what PPO saved."""

import json

import pytest
import torch
from safetensors.torch import load_file

from tasks.actor_critic.folder import save_actor_critic
from tasks.config import LoraConfig
from tasks.errors import InputError
from tasks.models.adapters import adapter_state, add_lora, load_adapter
from tasks.models.logits import ModelsDiffer
from tasks.models.model_files import kind_of
from tasks.models.modeling import load_causal_lm
from tasks.remove_value_head import run as remove_value_head
from tasks.remove_value_head.config import RemoveValueHeadConfig
from tasks.remove_value_head.run import main
from tests.tasks.tiny_models import HIDDEN, make_model, make_tokenizer, write_model, write_split

pytestmark = pytest.mark.slow

IDS = torch.tensor([[3, 5, 7, 9]])
HEAD = {"head.weight": torch.ones(1, HIDDEN), "head.offset": torch.zeros(())}


def write_full(folder, **options):
    policy, value = make_model(seed=1, **options), make_model(seed=2)
    save_actor_critic(folder, policy, {**HEAD, "backbone.norm.weight": value.model.norm.weight}, make_tokenizer())
    return policy


def write_lora(folder):
    model = add_lora(make_model(), LoraConfig(r=2), ["policy", "value"]).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    save_actor_critic(folder, model, {**HEAD, **adapter_state(model, "value")}, make_tokenizer(), adapter="policy")
    return model


@pytest.mark.parametrize("tied", [True, False])
def test_a_full_policy_becomes_a_plain_model_with_equal_logits(tmp_path, tied):
    policy = write_full(tmp_path / "saved", tie_word_embeddings=tied)
    main(RemoveValueHeadConfig(num_prompts=3), {"actor_critic": tmp_path / "saved"}, tmp_path / "output")
    assert kind_of(tmp_path / "output") == "model"
    assert torch.equal(load_causal_lm(tmp_path / "output")(IDS).logits, policy(IDS).logits)
    names = set(load_file(tmp_path / "output" / "model.safetensors"))
    assert names == set(policy.state_dict()) - ({"lm_head.weight"} if tied else set())
    report = json.loads((tmp_path / "output" / "report.json").read_text())
    assert report["logits_equal"] is True
    assert (report["tuning"], report["num_rows"], report["num_removed_tensors"]) == ("full", 3, 3)


def test_a_policys_adapter_becomes_a_plain_adapter_with_equal_logits(tmp_path):
    model = write_lora(tmp_path / "saved")
    inputs = {"actor_critic": tmp_path / "saved", "model": write_model(tmp_path / "base")}
    main(RemoveValueHeadConfig(), inputs, tmp_path / "output")
    assert kind_of(tmp_path / "output") == "adapter"
    loaded = load_adapter(load_causal_lm(inputs["model"]), tmp_path / "output", "x").eval()
    model.set_adapter("policy")
    assert torch.equal(loaded(IDS).logits, model(IDS).logits)
    names = set(load_file(tmp_path / "output" / "adapter_model.safetensors"))
    assert names == set(adapter_state(model, "policy"))
    files = {path.name for path in (tmp_path / "output").iterdir()}
    assert "actor_critic.json" not in files
    assert "model.safetensors" not in files


def test_a_bfloat16_policy_keeps_its_precision_and_its_logits(tmp_path):
    policy = make_model().to(torch.bfloat16)
    save_actor_critic(tmp_path / "saved", policy, HEAD, make_tokenizer())
    main(RemoveValueHeadConfig(), {"actor_critic": tmp_path / "saved"}, tmp_path / "output")
    loaded = load_causal_lm(tmp_path / "output", "bfloat16")
    assert torch.equal(loaded(IDS).logits, policy(IDS).logits)
    assert json.loads((tmp_path / "output" / "config.json").read_text())["dtype"] == "bfloat16"


def test_other_logits_after_saving_are_an_error(tmp_path, monkeypatch):
    write_full(tmp_path / "saved")
    monkeypatch.setattr(remove_value_head, "load_plain", lambda *_: make_model(seed=9))
    with pytest.raises(ModelsDiffer, match=r"says something else: largest difference of a logit \d.*equal bits"):
        main(RemoveValueHeadConfig(), {"actor_critic": tmp_path / "saved"}, tmp_path / "output")
    assert not list((tmp_path / "output").iterdir())


def test_an_adapter_without_its_base_is_refused(tmp_path):
    write_lora(tmp_path / "saved")
    with pytest.raises(InputError, match="--input model"):
        main(RemoveValueHeadConfig(), {"actor_critic": tmp_path / "saved"}, tmp_path / "output")


def test_a_model_without_a_value_head_is_refused(tmp_path):
    model = write_model(tmp_path / "model")
    with pytest.raises(InputError, match=r"expected a policy with a value head.*found none"):
        main(RemoveValueHeadConfig(), {"actor_critic": model}, tmp_path / "output")


def test_a_policy_that_does_not_fit_its_config_is_refused(tmp_path):
    write_full(tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    (tmp_path / "saved" / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(InputError, match=r"does not fit its config.*missing model\.layers\.2\."):
        main(RemoveValueHeadConfig(), {"actor_critic": tmp_path / "saved"}, tmp_path / "output")


def test_held_out_prompts_are_asked_and_answered_alike(tmp_path):
    write_full(tmp_path / "saved")
    write_split(tmp_path / "data", "prompts", "test", [{"prompt": "a good film"}, {"prompt": "bad"}])
    inputs = {"actor_critic": tmp_path / "saved", "data": tmp_path / "data"}
    main(RemoveValueHeadConfig(num_prompts=2), inputs, tmp_path / "output")
    report = json.loads((tmp_path / "output" / "report.json").read_text())
    ids = make_tokenizer()("a good film", return_tensors="pt")["input_ids"]
    policy = load_causal_lm(tmp_path / "output")
    policy.generation_config.eos_token_id = None
    greedy = policy.generate(ids, do_sample=False, max_new_tokens=16)
    assert report["greedy_text"] == make_tokenizer().decode(greedy[0, ids.shape[1] :])
    assert (report["num_rows"], report["num_greedy_texts"], report["num_greedy_texts_equal"]) == (4, 4, 4)


def test_a_small_shard_size_makes_several_files_of_the_same_bits(tmp_path):
    policy = write_full(tmp_path / "saved")
    main(RemoveValueHeadConfig(max_shard_size="4KB"), {"actor_critic": tmp_path / "saved"}, tmp_path / "output")
    assert len(list((tmp_path / "output").glob("model-*-of-*.safetensors"))) > 3
    assert torch.equal(load_causal_lm(tmp_path / "output")(IDS).logits, policy(IDS).logits)
