from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from tasks.errors import InputError
from tasks.models.modeling import load_reward_model, load_tokenizer
from tasks.rewards.models import check_lengths, encode_answered, model_scores, row_scores, was_trained_here
from tests.tasks.rewards import tiny

PAIRS = [("a b", " good"), ("c", " bad a b c good"), ("b", " a")]
TALK = [{"role": "user", "content": "a b"}, {"role": "assistant", "content": "c"}, {"role": "user", "content": "b"}]
EOS = tiny.TOKENS.index("<eos>")


def ids(*tokens: str) -> list[int]:
    return [tiny.TOKENS.index(token) for token in tokens]


def test_the_reward_model_scores_the_last_token_of_each_response(tmp_path) -> None:
    model = load_reward_model(tiny.write_reward_model(tmp_path / "reward"))
    tokenizer = tiny.make_tokenizer()
    episodes = tiny.make_answers(tokenizer, PAIRS).episodes
    rows = [[*tokenizer(prompt + response)["input_ids"], EOS] for prompt, response in PAIRS]
    expected = torch.stack([model(torch.tensor([row]))[0, -1] for row in rows])
    assert_close(model_scores(model, episodes, micro_batch_tokens=8), expected)
    assert_close(row_scores(model, rows, micro_batch_tokens=8), expected)


def test_how_rows_are_grouped_does_not_change_their_scores(tmp_path) -> None:
    model = load_reward_model(tiny.write_reward_model(tmp_path / "reward"))
    model.requires_grad_(True)
    rows = [[5, 6, 7], [8], [9, 5, 6, 7, 8, 9], [5, 6]]
    one_by_one = row_scores(model, rows, micro_batch_tokens=1)
    assert_close(row_scores(model, rows, micro_batch_tokens=10_000), one_by_one)
    assert len(set(one_by_one.tolist())) == 4
    assert not one_by_one.requires_grad


@pytest.mark.parametrize("ends_at_eos", [True, False])
def test_a_plain_prompt_is_followed_by_the_response_and_one_eos(ends_at_eos: bool) -> None:
    tokenizer = tiny.make_tokenizer()
    expected = ids("a", " b", " good", "<eos>")
    assert encode_answered(tokenizer, "a b", " good", ends_at_eos) == expected
    assert encode_answered(tokenizer, "a b", " good<eos>", ends_at_eos) == expected


def test_a_conversation_goes_through_the_reward_models_template_with_the_response_as_its_last_message() -> None:
    tokenizer = tiny.make_tokenizer(template=tiny.TEMPLATE)
    whole = ["U:", " a", " b", " \n", "A:", " c", "<eos>", " \n", "U:", " b", " \n", "A:", " good", "<eos>", " \n"]
    assert encode_answered(tokenizer, TALK, "good", ends_at_eos=False) == ids(*whole)
    assert encode_answered(tokenizer, TALK, "good", ends_at_eos=True) == ids(*whole[:-1])
    answer = [{"role": "assistant", "content": "good"}]
    assert encode_answered(tokenizer, TALK, answer, ends_at_eos=False) == ids(*whole)


@pytest.mark.slow
def test_rows_are_those_that_trls_reward_trainer_trains_on(tmp_path) -> None:
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification
    from trl import RewardConfig, RewardTrainer

    folder = tiny.write_reward_model(tmp_path / "reward", template=tiny.TEMPLATE, trained_here=False)
    tokenizer = load_tokenizer(folder)
    answer = [{"role": "assistant", "content": "good"}]
    for prompt, completion, text in (("a b", " good", " good"), (TALK, answer, "good")):
        trainer = RewardTrainer(
            model=AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1),
            args=RewardConfig(output_dir=str(tmp_path / "out"), report_to=[], use_cpu=True, bf16=False),
            train_dataset=Dataset.from_list([{"prompt": prompt, "chosen": completion, "rejected": completion}]),
            processing_class=tokenizer,
        )
        assert trainer.train_dataset[0]["chosen_ids"] == encode_answered(tokenizer, prompt, text, ends_at_eos=False)


def test_our_own_reward_models_are_told_from_others(tmp_path) -> None:
    assert was_trained_here(tiny.write_reward_model(tmp_path / "ours"))
    assert not was_trained_here(tiny.write_reward_model(tmp_path / "other", trained_here=False))


def test_a_row_longer_than_the_reward_models_context_is_refused(tmp_path: Path) -> None:
    model = load_reward_model(tiny.write_reward_model(tmp_path / "reward", max_position_embeddings=4))
    check_lengths([[1, 2, 3, 4], [1]], model, "The judge")
    with pytest.raises(InputError, match="The judge reads at most 4 tokens; a prompt with its response has 5"):
        check_lengths([[1], [1, 2, 3, 4, 5]], model, "The judge")
