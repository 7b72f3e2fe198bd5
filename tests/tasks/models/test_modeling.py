"""Loading and saving models, scalar heads, and which kind a folder is told to be."""

import json

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from tasks.config import LoraConfig
from tasks.errors import InputError
from tasks.models.adapters import adapter_state, add_lora, write_adapter
from tasks.models.model_files import kind_of, require_kind
from tasks.models.modeling import (
    ScalarHead,
    ScalarModel,
    backbone,
    classifier_head,
    last_value,
    load_causal_lm,
    load_classifier,
    load_reward_model,
    load_tokenizer,
    make_scalar_head,
    save_model,
    save_offset,
    save_scalar_head,
    stop_token_ids,
    torch_dtype,
)
from tests.tasks.tiny_models import EOS_ID, HIDDEN, PAD_ID, make_model, make_tokenizer, write_model

IDS = torch.tensor([[3, 5, 7, 9, EOS_ID], [4, 6, EOS_ID, PAD_ID, PAD_ID]])
MASK = torch.tensor([[True] * 5, [True, True, True, False, False]])


def write_classifier(folder, offset=0.0):
    torch.manual_seed(4)
    config = make_model().config
    config.num_labels = 1
    classifier = AutoModelForSequenceClassification.from_config(config)
    classifier.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    save_offset(folder, offset)
    return classifier.eval()


def write_reward_adapter(folder, model):
    torch.manual_seed(6)
    adapted = add_lora(model, LoraConfig(r=2), ["x"]).eval()
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    folder.mkdir()
    write_adapter(folder, adapter_state(adapted, "x"), adapted.peft_config["x"])
    head = make_scalar_head(torch.randn(1, HIDDEN), 0.5)
    save_scalar_head(folder, head)
    return adapted, head


def test_a_saved_model_loads_with_equal_logits_and_its_generation_config_knows_eos_and_padding(tmp_path):
    model = make_model()
    save_model(tmp_path, model, make_tokenizer())
    loaded = load_causal_lm(tmp_path)
    assert torch.equal(loaded(IDS).logits, model(IDS).logits)
    assert (loaded.generation_config.eos_token_id, loaded.generation_config.pad_token_id) == (EOS_ID, PAD_ID)
    assert not loaded.training


def test_a_model_loads_in_the_precision_asked_for(tmp_path):
    assert load_causal_lm(write_model(tmp_path), "bfloat16").dtype == torch.bfloat16


def test_an_unknown_precision_is_refused():
    with pytest.raises(InputError, match="int64"):
        torch_dtype("int64")


def test_a_reward_model_given_as_a_language_model_is_refused_naming_both(tmp_path):
    write_classifier(tmp_path)
    with pytest.raises(InputError, match=r"expected a causal language model.*found a reward model"):
        load_causal_lm(tmp_path)


def test_a_language_model_given_as_a_reward_model_is_refused_naming_both(tmp_path):
    with pytest.raises(InputError, match=r"expected a reward model.*found a causal language model"):
        load_reward_model(write_model(tmp_path))


def test_a_folder_without_a_model_is_refused_with_what_is_there(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(InputError, match=r"notes\.txt"):
        require_kind(tmp_path, "model")


def test_an_unknown_architecture_is_named(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["BertForMaskedLM"]}))
    with pytest.raises(InputError, match="BertForMaskedLM"):
        require_kind(tmp_path, "model")


@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "GPT2LMHeadModel"])
def test_causal_language_models_are_recognised_by_their_architecture(tmp_path, architecture):
    (tmp_path / "config.json").write_text(json.dumps({"architectures": [architecture]}))
    assert kind_of(tmp_path) == "model"


def test_a_tokenizer_without_pad_token_pads_with_eos_and_says_so(tmp_path, capsys):
    tokenizer = make_tokenizer()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path).pad_token_id == EOS_ID
    assert "padding with EOS" in capsys.readouterr().out


def test_a_tokenizer_without_eos_is_refused(tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="no EOS"):
        load_tokenizer(tmp_path)


def test_a_folder_without_tokenizer_is_refused(tmp_path):
    with pytest.raises(InputError, match="expected a tokenizer"):
        load_tokenizer(tmp_path)


def test_the_scalar_head_is_the_dot_product_less_the_offset_in_float32():
    head = make_scalar_head(torch.tensor([[1.0, -2.0]]), offset=0.5)
    hidden = torch.tensor([[[3.0, 1.0], [0.0, 4.0]]], dtype=torch.bfloat16)
    values = head(hidden)
    assert values.dtype == torch.float32
    assert values.tolist() == [[0.5, -8.5]]  # 3 - 2 - 0.5 and 0 - 8 - 0.5


def test_the_last_value_is_the_one_at_the_last_true_of_the_mask():
    values = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]])
    mask = torch.tensor([[True, True, True], [True, False, False], [True, True, False]])
    assert last_value(values, mask).tolist() == [3.0, 4.0, 8.0]


def test_padding_and_its_mask_change_no_score():
    model = ScalarModel(backbone(make_model()), make_scalar_head(torch.randn(1, HIDDEN))).eval()
    alone = model.score(IDS[1:, :3], MASK[1:, :3])
    torch.testing.assert_close(model.score(IDS, MASK)[1:], alone)
    torch.testing.assert_close(model(IDS, MASK)[1, :3], model(IDS)[1, :3])


def test_a_full_reward_model_scores_as_hugging_face_pools_it_less_the_offset(tmp_path):
    classifier = write_classifier(tmp_path, offset=0.75)
    expected = classifier(input_ids=IDS, attention_mask=MASK.long()).logits.squeeze(-1) - 0.75
    torch.testing.assert_close(load_reward_model(tmp_path).score(IDS, MASK), expected)


def test_eos_is_scored_also_where_the_padding_is_eos(tmp_path):
    classifier = write_classifier(tmp_path)
    padded_with_eos = IDS.masked_fill(~MASK, EOS_ID)
    at_eos = classifier.score(classifier.model(IDS[1:, :3]).last_hidden_state)[:, -1, 0]
    torch.testing.assert_close(load_reward_model(tmp_path).score(padded_with_eos, MASK)[1:], at_eos)


def test_a_reward_adapter_scores_as_its_unmerged_model_with_its_head(tmp_path):
    adapted, head = write_reward_adapter(tmp_path / "adapter", make_model())
    base = write_model(tmp_path / "base")
    expected = last_value(ScalarModel(backbone(adapted), head)(IDS), MASK)
    loaded = load_reward_model(tmp_path / "adapter", base)
    torch.testing.assert_close(loaded.score(IDS, MASK), expected, rtol=1e-4, atol=1e-5)
    assert kind_of(tmp_path / "adapter") == "reward_adapter"


def test_a_loaded_reward_model_is_frozen(tmp_path):
    write_classifier(tmp_path)
    model = load_reward_model(tmp_path)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not model.training


def test_a_reward_adapter_without_its_base_is_refused(tmp_path):
    write_reward_adapter(tmp_path / "adapter", make_model())
    with pytest.raises(InputError, match="trained on is needed"):
        load_reward_model(tmp_path / "adapter")


def test_a_classifier_from_a_language_model_keeps_its_backbone(tmp_path):
    classifier = load_classifier(write_model(tmp_path))
    assert torch.equal(classifier.model.embed_tokens.weight, make_model().model.embed_tokens.weight)
    assert classifier.config.num_labels == 1


def test_a_head_with_several_outputs_is_refused():
    classifier = AutoModelForSequenceClassification.from_config(make_model().config)
    with pytest.raises(InputError, match="one output"):
        classifier_head(classifier)


def test_the_backbone_of_an_adapted_model_goes_through_its_adapters():
    model = make_model()
    plain = backbone(model)(IDS).last_hidden_state
    adapted = add_lora(model, LoraConfig(r=2), ["x"]).eval()
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.ones_(parameter)
    assert not torch.allclose(backbone(adapted)(IDS).last_hidden_state, plain)


def test_the_tokens_that_end_a_response_are_the_tokenizers_and_the_generation_configs():
    model = make_model()
    model.generation_config.eos_token_id = [EOS_ID, 7]
    assert stop_token_ids(model, make_tokenizer()) == [EOS_ID, 7]


def test_a_fresh_head_has_no_offset():
    assert ScalarHead(4).offset.item() == 0
