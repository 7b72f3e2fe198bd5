"""Adapters on one frozen base: what is trained, what a switch does, what a file holds."""

import json

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from tasks.config import LoraConfig
from tasks.errors import InputError
from tasks.models.adapters import (
    adapter_parameters,
    adapter_state,
    add_lora,
    add_lora_to_classifier,
    load_adapter,
    load_adapter_state,
    load_merged,
    lora_layers,
    save_adapter,
    set_trainable,
    use_adapter,
)
from tasks.models.modeling import load_classifier
from tests.tasks.tiny_models import make_model, make_tokenizer, write_model

IDS = torch.tensor([[3, 5, 7, 9, 11]])
RANK_2 = LoraConfig(r=2, alpha=4.0)
DORA = LoraConfig(r=2, alpha=4.0, use_dora=True)
NUM_TENSORS = 2 * 7 * 2  # layers x linear modules of a Llama layer x (A, B)
NUM_DORA_TENSORS = 2 * 7 * 3  # and the lengths of the rows


def trainable(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def with_random_adapters(*names, seed=3, config=RANK_2, trainable_layers=None, base=None):
    """Adapters whose B matrices are not zero, so that each changes the output in its own way."""
    torch.manual_seed(seed)
    model = add_lora(base or make_model(), config, names, trainable_layers).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
            if "lora_magnitude" in name:
                parameter.mul_(torch.linspace(0.5, 1.5, len(parameter)))
    return model


def test_add_lora_trains_every_adapter_tensor_and_nothing_else():
    model = add_lora(make_model(), RANK_2, ["policy", "value"])
    assert len(trainable(model)) == 2 * NUM_TENSORS
    assert all("lora_" in name for name in trainable(model))


@pytest.mark.parametrize(("config", "num_tensors"), [(RANK_2, NUM_TENSORS), (DORA, NUM_DORA_TENSORS)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_training_an_adapter_changes_every_tensor_of_it_and_no_other(config, num_tensors, dtype):
    model = with_random_adapters("policy", "value", config=config, base=make_model().to(dtype))
    set_trainable(model, ["policy"])
    use_adapter(lora_layers(model), "policy")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(IDS, labels=IDS).loss.backward()
    optimizer.step()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == set(adapter_parameters(model, "policy"))
    assert len(changed) == num_tensors
    assert {parameter.dtype for parameter in adapter_parameters(model, "policy").values()} == {torch.float32}


@pytest.mark.parametrize("config", [RANK_2, DORA])
def test_a_switch_gives_what_pefts_own_switches_give(config):
    model = with_random_adapters("policy", "value", config=config)
    layers = lora_layers(model)
    outputs = {}
    for name in ("policy", "value", None):
        use_adapter(layers, name)
        outputs[name] = model(IDS).logits
    model = with_random_adapters("policy", "value", config=config)
    for name in ("policy", "value"):
        model.set_adapter(name)
        assert torch.equal(model(IDS).logits, outputs[name])
    with model.disable_adapter():
        assert torch.equal(model(IDS).logits, outputs[None])
    assert torch.equal(outputs[None], make_model()(IDS).logits)
    assert not torch.allclose(outputs["policy"], outputs["value"])


def test_a_switch_leaves_what_requires_gradients_alone():
    model = with_random_adapters("policy", "value")
    set_trainable(model, ["value"])
    expected = trainable(model)
    for name in ("policy", None, "value"):
        use_adapter(lora_layers(model), name)
        assert trainable(model) == expected


def test_loading_an_adapter_freezes_it_and_leaves_the_others_trainable(tmp_path):
    save_adapter(tmp_path, with_random_adapters("x"), "x", make_tokenizer())
    model = add_lora(make_model(), RANK_2, ["policy", "value"])
    expected = trainable(model)
    model = load_adapter(model, tmp_path, "reward")
    assert trainable(model) == expected
    assert len(adapter_parameters(model, "reward")) == NUM_TENSORS


@pytest.mark.parametrize("trainable_layers", [None, 1])
@pytest.mark.parametrize("config", [RANK_2, DORA, LoraConfig(r=4, use_rslora=True)])
def test_a_saved_adapter_loads_with_equal_logits(tmp_path, config, trainable_layers):
    model = with_random_adapters("x", config=config, trainable_layers=trainable_layers)
    save_adapter(tmp_path, model, "x", make_tokenizer())
    assert torch.equal(load_adapter(make_model(), tmp_path, "y")(IDS).logits, model(IDS).logits)


def test_a_saved_adapter_names_no_folder_of_the_machine_and_is_the_same_every_time(tmp_path):
    for name in ("one", "two"):
        model = with_random_adapters("x")
        model.peft_config["x"].base_model_name_or_path = "/somewhere/on/this/machine"
        save_adapter(tmp_path / name, model, "x", make_tokenizer())
    text = (tmp_path / "one" / "adapter_config.json").read_text()
    assert json.loads(text)["base_model_name_or_path"] is None
    assert json.loads(text)["target_modules"] == sorted(json.loads(text)["target_modules"])
    assert text == (tmp_path / "two" / "adapter_config.json").read_text()


def test_merged_weights_are_base_plus_scaled_product(tmp_path):
    model = with_random_adapters("x")
    save_adapter(tmp_path / "adapter", model, "x", make_tokenizer())
    merged = load_merged(write_model(tmp_path / "base"), tmp_path / "adapter")
    state = adapter_state(model, "x")
    name = "model.layers.1.mlp.up_proj"
    a, b = (state[f"base_model.model.{name}.lora_{side}.weight"] for side in "AB")
    expected = make_model().get_parameter(f"{name}.weight") + 4.0 / 2 * b @ a  # alpha / r
    torch.testing.assert_close(merged.get_parameter(f"{name}.weight"), expected)
    torch.testing.assert_close(merged(IDS).logits, model(IDS).logits, rtol=1e-4, atol=1e-4)


def test_a_merged_dora_row_is_its_direction_at_the_learned_length(tmp_path):
    model = with_random_adapters("other", "x", config=DORA)
    save_adapter(tmp_path / "adapter", model, "x", make_tokenizer())
    merged = load_merged(write_model(tmp_path / "base"), tmp_path / "adapter")
    state = adapter_state(model, "x")
    name = "model.layers.1.mlp.up_proj"
    a, b = (state[f"base_model.model.{name}.lora_{side}.weight"] for side in "AB")
    rows = make_model().get_parameter(f"{name}.weight") + 4.0 / 2 * b @ a
    # equation 5 of DoRA (arXiv:2402.09353)
    lengths = state[f"base_model.model.{name}.lora_magnitude_vector"]
    expected = lengths[:, None] * rows / rows.square().sum(dim=1, keepdim=True).sqrt()
    torch.testing.assert_close(merged.get_parameter(f"{name}.weight"), expected)
    use_adapter(lora_layers(model), "x")
    torch.testing.assert_close(merged(IDS).logits, model(IDS).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("config", [RANK_2, DORA])
def test_a_fresh_adapter_changes_nothing(config, dtype):
    expected = make_model().to(dtype)(IDS).logits
    model = add_lora(make_model().to(dtype), config, ["policy", "value"]).eval()
    for name in ("policy", "value"):
        use_adapter(lora_layers(model), name)
        assert torch.equal(model(IDS).logits, expected)


def test_training_adapters_on_a_bfloat16_base_leaves_every_bit_of_the_base():
    model = with_random_adapters("policy", "value", base=make_model().bfloat16())
    layers = lora_layers(model)
    use_adapter(layers, None)
    expected = model(IDS).logits
    optimizer = torch.optim.SGD([*adapter_parameters(model, "policy").values()], lr=0.1)
    for _ in range(10):
        use_adapter(layers, "policy")
        model(IDS, labels=IDS).loss.backward()
        optimizer.step()
        use_adapter(layers, "value")
        model(IDS)
    use_adapter(layers, None)
    assert torch.equal(model(IDS).logits, expected)


def test_pefts_merging_into_a_bfloat16_base_and_out_again_would_change_it():
    model = with_random_adapters("policy", base=make_model().bfloat16())
    name = "base_model.model.model.layers.1.mlp.up_proj.base_layer.weight"
    before = model.get_parameter(name).clone()
    for _ in range(10):
        model.merge_adapter()
        model.unmerge_adapter()
    assert (model.get_parameter(name) != before).float().mean() > 0.05


def test_merging_reads_the_base_and_changes_nothing_of_it(tmp_path):
    base = write_model(tmp_path / "base")
    save_adapter(tmp_path / "adapter", with_random_adapters("x"), "x", make_tokenizer())
    before = {path.name: path.read_bytes() for path in base.iterdir()}
    load_merged(base, tmp_path / "adapter")
    assert {path.name: path.read_bytes() for path in base.iterdir()} == before


def test_adapters_in_the_last_layers_stand_nowhere_else():
    model = with_random_adapters("policy", trainable_layers=1)
    model = add_lora(model, RANK_2, ["value"])
    names = adapter_parameters(model, "policy")
    assert len(names) == NUM_TENSORS // 2
    assert all(".layers.1." in name for name in names)
    assert len(adapter_parameters(model, "value")) == NUM_TENSORS


def test_adapters_of_named_modules_and_of_a_transformer_without_head_can_stand_in_the_last_layers():
    config = LoraConfig(r=2, target_modules=["q_proj", "up_proj"])
    model = add_lora(make_model().base_model, config, ["x"], 1)
    shapes = {name.partition("layers.")[2]: tuple(p.shape) for name, p in adapter_parameters(model, "x").items()}
    assert shapes == {
        "1.self_attn.q_proj.lora_A.x.weight": (2, 16),
        "1.self_attn.q_proj.lora_B.x.weight": (16, 2),
        "1.mlp.up_proj.lora_A.x.weight": (2, 16),
        "1.mlp.up_proj.lora_B.x.weight": (24, 2),
    }


@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
def test_an_adapter_in_the_last_layers_can_join_one_in_all_layers():
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=19, n_embd=16, n_layer=2, n_head=2))
    for plain, num_modules in ((make_model(), 7), (gpt2, 4)):
        model = add_lora(add_lora(plain, RANK_2, ["reward"]), RANK_2, ["policy"], 1)
        reward, policy = (adapter_parameters(model, name) for name in ("reward", "policy"))
        assert {name.replace(".policy.", ".reward.") for name in policy} == {name for name in reward if ".1." in name}
        assert len(policy) == num_modules * 2
        targets = {name.partition(".lora_")[0].rpartition(".")[2] for name in policy}
        assert model.peft_config["policy"].target_modules == targets


def test_more_layers_than_there_are_and_a_pattern_with_layers_are_refused():
    with pytest.raises(InputError, match="trainable_layers 3: the model has 2 layers"):
        add_lora(make_model(), RANK_2, ["x"], 3)
    with pytest.raises(InputError, match="is a pattern, which trainable_layers cannot narrow down"):
        add_lora(make_model(), LoraConfig(target_modules=".*q_proj"), ["x"], 1)


@pytest.mark.parametrize(("use_dora", "num_tensors"), [(False, 2), (True, 3)])
def test_an_adapter_of_the_embedding_is_trained_too(use_dora, num_tensors):
    config = LoraConfig(r=2, target_modules=["embed_tokens"], use_dora=use_dora)
    model = add_lora(make_model(), config, ["policy", "value"])
    assert len(adapter_parameters(model, "policy")) == num_tensors
    assert trainable(model) == {*adapter_parameters(model, "policy"), *adapter_parameters(model, "value")}


def test_rslora_divides_by_the_root_of_the_rank():
    # alpha / sqrt(4) is 2 alpha / 4
    with_root = with_random_adapters("x", config=LoraConfig(r=4, alpha=3.0, use_rslora=True))
    without = with_random_adapters("x", config=LoraConfig(r=4, alpha=6.0))
    assert torch.equal(with_root(IDS).logits, without(IDS).logits)


def test_an_adapter_of_another_model_is_refused(tmp_path):
    save_adapter(tmp_path, with_random_adapters("x"), "x", make_tokenizer())
    with pytest.raises(InputError, match="does not fit this base model"):
        load_adapter(make_model(intermediate_size=32), tmp_path, "x")


def test_a_state_with_a_tensor_less_is_refused():
    model = with_random_adapters("x")
    state = adapter_state(model, "x")
    missing = sorted(state)[0]
    del state[missing]
    with pytest.raises(InputError, match=missing):
        load_adapter_state(model, state, "x")


def test_a_module_that_the_model_has_not_is_refused():
    with pytest.raises(InputError, match="no_such_module"):
        add_lora(make_model(), LoraConfig(target_modules=["no_such_module"]), ["x"])


def test_rank_and_target_modules_set_the_tensors():
    model = add_lora(make_model(), LoraConfig(r=3, target_modules=["q_proj"]), ["x"])
    shapes = sorted(tuple(tensor.shape) for tensor in adapter_state(model, "x").values())
    assert shapes == [(3, 16), (3, 16), (16, 3), (16, 3)]


def test_alpha_scales_the_change():
    small, large = (with_random_adapters("x", config=LoraConfig(r=2, alpha=alpha)) for alpha in (1e-3, 2e-3))
    base = make_model()(IDS).logits
    ratio = (large(IDS).logits - base).norm() / (small(IDS).logits - base).norm()
    torch.testing.assert_close(ratio.item(), 2.0, rtol=0.02, atol=0)


def test_dropout_is_active_in_training_only():
    model = with_random_adapters("x", config=LoraConfig(r=2, dropout=0.5))
    assert torch.equal(model(IDS).logits, model(IDS).logits)
    model.train()
    assert not torch.equal(model(IDS).logits, model(IDS).logits)


def test_a_classifier_trains_its_adapter_and_its_head_only(tmp_path):
    model = add_lora_to_classifier(load_classifier(write_model(tmp_path)), RANK_2, "default")
    names = trainable(model)
    assert sum("lora_" in name for name in names) == NUM_TENSORS
    assert [name for name in names if "lora_" not in name] == ["base_model.model.score.modules_to_save.default.weight"]
