"""Reward-model training: both kinds, centring, and the tokens that are scored."""

import json

import pytest
import torch
from safetensors.torch import load_file

from tasks.errors import InputError
from tasks.models.adapters import load_adapter
from tasks.models.model_files import kind_of
from tasks.models.modeling import backbone, load_causal_lm, load_reward_model, load_scalar_head, load_tokenizer
from tasks.parts import half_of
from tasks.reward_model.config import RewardModelConfig
from tasks.reward_model.measure import score_rows
from tasks.reward_model.train import (
    blank_tokens,
    encode,
    main,
    make_trainer,
    padding_for_pooling,
    read_demonstrations,
    read_pairs,
)
from tests.tasks.tiny_models import EOS_ID, make_tokenizer, write_model, write_split

PAIRS = [
    {"prompt": "a", "chosen": " good film", "rejected": " bad film"},
    {"prompt": "b c", "chosen": " good", "rejected": " bad d e"},
    {"prompt": "d", "chosen": " c good e", "rejected": " bad"},
    {"prompt": "e a", "chosen": " d good", "rejected": " b bad"},
] * 4
DEMONSTRATIONS = [{"prompt": "a b", "completion": " film"}, {"prompt": "c", "completion": " good e"}] * 3
QUICK = {"learning_rate": 1e-2, "max_steps": 8, "per_device_batch_size": 4, "max_length": 32, "eval_steps": 8}


def write_data(folder):
    for split in ("train", "test"):
        write_split(folder, "preferences", split, PAIRS)
    write_split(folder, "sft", "train", DEMONSTRATIONS)
    return folder


def run(tmp_path, **options):
    inputs = {"data": write_data(tmp_path / "data"), "model": write_model(tmp_path / "model")}
    output = tmp_path / "output"
    output.mkdir()
    main(RewardModelConfig(**{**QUICK, **options}), inputs, output)
    return inputs["model"], output, json.loads((output / "report.json").read_text())


def check_scores(model, report):
    """What main reported holds for the model as it was saved."""
    tokenizer = make_tokenizer()
    pairs = encode(tokenizer, PAIRS, 32).dataset
    chosen, rejected = score_rows(model, pairs["chosen_ids"][:]), score_rows(model, pairs["rejected_ids"][:])
    assert report["pair_accuracy"] == sum(a > b for a, b in zip(chosen.tolist(), rejected.tolist(), strict=True)) / 16
    assert report["mean_margin"] == pytest.approx((chosen - rejected).mean().item())
    rows = [tokenizer(r["prompt"] + r["completion"])["input_ids"] + [EOS_ID] for r in DEMONSTRATIONS]
    assert score_rows(model, rows).mean().item() == pytest.approx(0, abs=1e-5)
    assert report["offset"] != 0


def test_a_full_reward_model_learns_the_pairs_and_scores_demonstrations_zero_on_average(tmp_path):
    _, output, report = run(tmp_path)
    assert kind_of(output) == "reward_model"
    assert report["pair_accuracy"] == 1.0
    check_scores(load_reward_model(output), report)


@pytest.mark.slow
def test_a_lora_reward_model_is_stored_on_the_language_models_base(tmp_path):
    base, output, report = run(tmp_path, lora={"r": 4})
    assert kind_of(output) == "reward_adapter"
    check_scores(load_reward_model(output, base), report)
    adapted = load_adapter(load_causal_lm(base), output, "reward").eval()
    ids = torch.tensor([[3, 5, EOS_ID]])
    score = load_scalar_head(output)(backbone(adapted)(ids).last_hidden_state)[0, -1].item()
    assert score == pytest.approx(load_reward_model(output, base)(ids)[0, -1].item(), abs=1e-4)


@pytest.mark.slow
def test_lora_training_changes_every_adapter_tensor_and_the_head_and_nothing_else(tmp_path):
    model = write_model(tmp_path / "model")
    config = RewardModelConfig(**QUICK, lora={"r": 2})
    tokenizer = make_tokenizer()
    pairs = encode(tokenizer, PAIRS, 32).dataset
    trainer = make_trainer(config, model, tmp_path, tokenizer, pairs, pairs)
    before = {name: parameter.clone() for name, parameter in trainer.model.named_parameters()}
    trainer.train()
    changed = {name for name, tensor in trainer.model.named_parameters() if not torch.equal(tensor, before[name])}
    expected = {name for name in before if "lora_" in name or "modules_to_save" in name}
    assert changed == expected
    assert len(changed) == 2 * 7 * 2 + 1


@pytest.mark.slow
def test_trainable_layers_restrict_the_adapter_to_the_last_ones(tmp_path):
    base, output, report = run(tmp_path, lora={"r": 4}, trainable_layers=1)
    names = load_file(output / "adapter_model.safetensors")
    assert {name.partition("layers.")[2][0] for name in names} == {"1"}
    check_scores(load_reward_model(output, base), report)


def test_trainable_layers_need_adapters():
    with pytest.raises(ValueError, match="Set lora, or leave it out"):
        RewardModelConfig(trainable_layers=1)


@pytest.mark.slow
def test_without_demonstrations_the_score_is_not_moved(tmp_path):
    _, _, report = run(tmp_path, num_demonstrations=0, max_steps=1)
    assert report["offset"] == 0
    assert "demonstration_score_mean" not in report


def test_rows_are_prompt_and_response_up_to_eos():
    row = encode(make_tokenizer(), PAIRS[:1], 32).dataset[0]
    names = make_tokenizer().convert_ids_to_tokens
    assert names(row["chosen_ids"]) == ["a", " good", " film", "<eos>"]
    assert names(row["rejected_ids"]) == ["a", " bad", " film", "<eos>"]


TEMPLATE = {
    "chat_template": "{% for m in messages %}{{ ' ' + m['content'] }}{% endfor %}",
    "system_message": "film",
}


def test_a_template_makes_conversations_of_plain_records(tmp_path):
    config = RewardModelConfig(num_demonstrations=1, conversation_template=TEMPLATE)
    names = make_tokenizer().convert_ids_to_tokens
    row = encode(make_tokenizer(), PAIRS[:1], 32, config.conversation_template).dataset[0]
    assert names(row["chosen_ids"]) == [" film", " a", " good", " film", "<eos>"]
    [demonstration] = read_demonstrations(config, write_data(tmp_path), make_tokenizer())
    assert names(demonstration)[0] == " film"


@pytest.mark.slow
def test_training_uses_the_template_and_saves_it_with_the_tokenizer(tmp_path):
    reports = []
    for name, options in (("plain", {}), ("conversing", {"conversation_template": TEMPLATE})):
        (tmp_path / name).mkdir()
        _, output, report = run(tmp_path / name, max_steps=1, **options)
        reports.append(report["mean_margin"])
    assert load_tokenizer(output).chat_template == TEMPLATE["chat_template"]
    assert reports[0] != reports[1]


def test_pairs_with_a_side_over_max_length_are_left_out_and_counted():
    pairs = encode(make_tokenizer(), PAIRS[:2], 4)  # b c bad d e <eos> has 6 tokens
    assert (len(pairs.dataset), pairs.num_dropped) == (1, 1)


def test_pairs_that_all_exceed_max_length_are_refused():
    with pytest.raises(InputError, match="Raise max_length"):
        encode(make_tokenizer(), PAIRS, 2)


def test_the_padding_that_hugging_face_pools_by_is_never_eos():
    assert padding_for_pooling(make_tokenizer()) == 0
    assert padding_for_pooling(make_tokenizer(pad="<eos>")) == 0
    padded_with_eos = make_tokenizer(pad="<eos>")
    padded_with_eos.eos_token = padded_with_eos.pad_token = "<pad>"
    assert padding_for_pooling(padded_with_eos) == 1


def test_the_halves_share_no_prompt_and_are_all_training_pairs_together(tmp_path):
    data = write_data(tmp_path / "data")
    pairs = [{**PAIRS[0], "prompt": f"a{number // 2}"} for number in range(40)]
    write_split(data, "preferences", "train", pairs)
    first, second = (read_pairs(RewardModelConfig(half=half), data, "train") for half in ("first", "second"))
    assert min(len(first), len(second)) > 5
    assert not {one["prompt"] for one in first} & {one["prompt"] for one in second}
    assert len(first) + len(second) == len(read_pairs(RewardModelConfig(), data, "train")) == 40
    assert read_pairs(RewardModelConfig(half="first"), data, "test") == PAIRS


def test_a_half_without_a_pair_is_refused(tmp_path):
    data = write_data(tmp_path / "data")
    write_split(data, "preferences", "train", PAIRS[:1])
    empty = "second" if half_of(PAIRS[0]["prompt"]) == "first" else "first"
    with pytest.raises(InputError, match=f"none of the 1 training pairs has a prompt of the {empty} half"):
        read_pairs(RewardModelConfig(half=empty), data, "train")


@pytest.mark.slow
def test_training_uses_the_half_alone(tmp_path):
    _, _, report = run(tmp_path, half="first", max_steps=1)
    assert report["num_train_pairs"] == sum(half_of(pair["prompt"]) == "first" for pair in PAIRS) < 16


def test_the_seed_draws_the_demonstrations(tmp_path):
    data = tmp_path / "data"
    records = [{"prompt": word, "completion": " film"} for word in ("a", "b", "c", "d", "e", "good", "bad")]
    write_split(data, "sft", "train", records)
    drawn = [
        read_demonstrations(RewardModelConfig(seed=seed, num_demonstrations=4), data, make_tokenizer())
        for seed in (0, 0, 1)
    ]
    assert len(drawn[0]) == 4
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_reward_model_cannot_start_from_an_adapter(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "adapter_config.json").write_text("{}")
    inputs = {"data": write_data(tmp_path / "data"), "model": tmp_path / "model"}
    with pytest.raises(InputError, match=r"expected a causal language model.*found a LoRA adapter"):
        main(RewardModelConfig(), inputs, tmp_path)


def test_token_dropout_blanks_whole_tokens_in_training_and_never_the_last(tmp_path):
    model = load_causal_lm(write_model(tmp_path / "model"))
    blank_tokens(model, 0.5, EOS_ID)
    embed = model.get_input_embeddings()
    ids = torch.tensor([[3, 4, 5, 6, EOS_ID]] * 50)
    blanked = (embed.train()(ids) == 0).all(dim=-1)
    assert 0.35 < blanked[:, :-1].float().mean() < 0.65
    assert not blanked[:, -1].any()
    assert not (embed.eval()(ids) == 0).all(dim=-1).any()
