"""Records for the language-model loss beside PPO's."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tasks.errors import InputError
from tasks.language_data import LanguageData, read_language_data
from tasks.templates import ConversationTemplate
from tests.tasks.tiny_models import make_tokenizer, write_split

RECORDS: list[dict[str, Any]] = [
    {"prompt": "a b", "completion": " c good"},
    {"prompt": "film", "completion": " d"},
    {"prompt": "", "completion": "e bad film"},
]
DATA = LanguageData([([3, 4], [5, 6, 7]), ([8], [9]), ([10, 11, 12], [13])])
CPU = torch.device("cpu")


def read_words(folder: Path, longest: int | None = None) -> list[tuple[list[str], list[str]]]:
    """Prompt and completion of each record as tokens."""
    tokenizer = make_tokenizer()
    pairs = read_language_data(folder, tokenizer, longest).records
    return [tuple(tokenizer.convert_ids_to_tokens(ids) for ids in pair) for pair in pairs]  # type: ignore[misc]


def test_a_completion_is_learned_with_its_end_and_a_text_from_its_second_token_on(tmp_path: Path) -> None:
    write_split(tmp_path, "ptx", "train", RECORDS)
    assert read_words(tmp_path) == [
        (["a", " b"], [" c", " good", "<eos>"]),
        (["film"], [" d", "<eos>"]),
        (["e"], [" bad", " film", "<eos>"]),
    ]


def test_a_template_writes_conversations_and_leaves_plain_texts_alone(tmp_path: Path) -> None:
    write_split(tmp_path, "ptx", "train", RECORDS)
    chat = "{% for m in messages %}{{ ' ' + m['content'].strip() }}{% endfor %}"
    tokenizer, template = make_tokenizer(), ConversationTemplate(chat_template=chat, system_message="bad")
    template.apply_to(tokenizer)
    data = read_language_data(tmp_path, tokenizer, None, template)
    assert [tokenizer.decode(prompt) for prompt, _ in data.records] == [" bad a b", " bad film", "e"]


def test_longer_records_are_cut_and_left_out_where_the_prompt_fills_the_length(tmp_path: Path) -> None:
    write_split(tmp_path, "ptx", "train", RECORDS)
    assert read_words(tmp_path, longest=4) == [
        (["a", " b"], [" c", " good"]),
        (["film"], [" d", "<eos>"]),
        (["e"], [" bad", " film", "<eos>"]),
    ]
    assert read_words(tmp_path, longest=2) == [(["film"], [" d"]), (["e"], [" bad"])]
    write_split(tmp_path, "ptx", "train", [*RECORDS[:2], {"prompt": "a b c d", "completion": " e e e"}])
    assert read_words(tmp_path, longest=2) == [(["film"], [" d"])]


def test_ptx_records_come_before_those_of_sft(tmp_path: Path) -> None:
    write_split(tmp_path, "sft", "train", RECORDS[:1])
    assert read_words(tmp_path) == [(["a", " b"], [" c", " good", "<eos>"])]
    write_split(tmp_path, "ptx", "train", RECORDS[1:2])
    assert read_words(tmp_path) == [(["film"], [" d", "<eos>"])]


def test_without_records_the_data_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"sft_train\.parquet does not exist"):
        read_words(tmp_path)


def test_records_with_nothing_to_learn_are_refused(tmp_path: Path) -> None:
    write_split(tmp_path, "sft", "train", RECORDS[:1])
    with pytest.raises(InputError, match=r"sft_train\.parquet: none of its 1 records .* context of 2 tokens"):
        read_words(tmp_path, longest=2)


@pytest.mark.slow
@pytest.mark.parametrize("longest", [3, 100])
def test_the_tokens_learned_are_those_that_sft_trains_on(tmp_path: Path, longest: int) -> None:
    from tasks.sft.train import IGNORED, encode

    write_split(tmp_path, "sft", "train", RECORDS[:2])
    ours = read_language_data(tmp_path, make_tokenizer(), longest)
    theirs = encode(make_tokenizer(), RECORDS[:2], longest).dataset
    assert [prompt + completion for prompt, completion in ours.records] == list(theirs["input_ids"])
    learned = [[label for label in labels if label != IGNORED] for labels in theirs["labels"]]
    assert [completion for _, completion in ours.records] == learned


def test_a_batch_holds_records_as_prompt_and_completion() -> None:
    episodes = DATA.batch(20, seed=0, step=0, device=CPU)
    rows = set()
    for ids, length, prompt_length in zip(episodes.ids, episodes.lengths, episodes.prompt_lengths, strict=True):
        rows.add((tuple(ids[:prompt_length].tolist()), tuple(ids[prompt_length:length].tolist())))
    assert rows == {(tuple(prompt), tuple(completion)) for prompt, completion in DATA.records}
    assert episodes.mask.shape == (20, 3)


def test_what_is_drawn_is_a_function_of_seed_and_step() -> None:
    batch = DATA.batch(30, seed=1, step=2, device=CPU)
    torch.manual_seed(99)
    again = DATA.batch(30, seed=1, step=2, device=CPU)
    assert torch.equal(batch.ids, again.ids)
    for seed, step in ((2, 2), (1, 3), (2, 1)):
        assert not torch.equal(batch.prompt_lengths, DATA.batch(30, seed=seed, step=step, device=CPU).prompt_lengths)
