"""Reading records, tokenising prompts, padding and micro-batches."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tasks.data import (
    decode_response,
    encode_messages,
    encode_prompt,
    micro_batches,
    pad_left,
    pad_right,
    prompt_text,
    read_split,
)
from tasks.errors import InputError
from tasks.templates import ConversationTemplate

TEXTS = ["the cat sat on the mat", "the dog ate the cat food", "user assistant hello there"]
CHAT_TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% if m['role'] == 'assistant' %}</s>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with merges, a chat template and special tokens <pad> = 0, </s> = 1."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<pad>", "</s>"]
    core.train_from_iterator(TEXTS, trainers.BpeTrainer(special_tokens=special, initial_alphabet=alphabet))
    made = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="</s>")
    made.chat_template = CHAT_TEMPLATE
    return made


def test_padding_on_the_right_keeps_each_row_in_front() -> None:
    ids, mask = pad_right([[5, 6, 7], [8]], 0)
    assert ids.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert mask.tolist() == [[True, True, True], [True, False, False]]
    assert ids.dtype == torch.long


def test_padding_on_the_left_keeps_each_row_at_the_end() -> None:
    ids, mask = pad_left([[5, 6, 7], [8]], 9)
    assert ids.tolist() == [[5, 6, 7], [9, 9, 8]]
    assert mask.tolist() == [[True, True, True], [False, False, True]]


def test_an_own_token_that_equals_the_padding_still_counts() -> None:
    assert pad_right([[0, 1], [0]], 0)[1].tolist() == [[True, True], [True, False]]


def test_no_rows_pad_to_an_empty_batch() -> None:
    assert pad_right([], 0)[0].shape == (0, 0)
    assert pad_left([[]], 0)[0].shape == (1, 0)


def test_micro_batches_by_hand() -> None:
    assert micro_batches([3, 9, 1, 4, 4], 8) == [[1], [3, 4], [0, 2]]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 50), max_size=60), st.integers(1, 200))
def test_micro_batches_hold_every_row_once_within_the_budget(lengths: list[int], budget: int) -> None:
    groups = micro_batches(lengths, budget)
    assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
    assert all(len(group) == 1 or len(group) * max(lengths[i] for i in group) <= budget for group in groups)
    in_order = [lengths[index] for group in groups for index in group]
    assert in_order == sorted(lengths, reverse=True)


@given(st.lists(st.integers(1, 20), min_size=2, max_size=30), st.integers(1, 100))
def test_no_micro_batch_could_have_taken_the_next_row(lengths: list[int], budget: int) -> None:
    groups = micro_batches(lengths, budget)
    assert all((len(group) + 1) * lengths[group[0]] > budget for group in groups[:-1])


def test_a_budget_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="token_budget is 0"):
        micro_batches([1], 0)


def test_prompt_text_shows_roles_only_in_a_dialogue() -> None:
    assert prompt_text("Hello") == "Hello"
    assert prompt_text([{"role": "user", "content": "Hello"}]) == "Hello"
    dialogue = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello"}]
    assert prompt_text(dialogue) == "system: Be kind.\nuser: Hello"


def test_a_decoded_response_keeps_its_space_and_loses_its_special_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = [*tokenizer(" the cat .")["input_ids"], tokenizer.eos_token_id, tokenizer.pad_token_id]
    assert decode_response(tokenizer, ids) == " the cat ."
    assert decode_response(tokenizer, torch.tensor(ids)) == " the cat ."


def test_a_decoded_response_loses_what_the_template_writes_after_it(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = tokenizer("good film")["input_ids"]
    whole = decode_response(tokenizer, ids)
    ending = whole[-3:]
    assert decode_response(tokenizer, ids, ConversationTemplate(end_of_assistant=ending)) == whole[:-3]
    assert decode_response(tokenizer, ids, ConversationTemplate(end_of_assistant="x" + ending)) == whole
    assert decode_response(tokenizer, ids, ConversationTemplate()) == whole


def test_a_conversation_is_encoded_as_its_template_spells_it(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = encode_prompt(tokenizer, [{"role": "user", "content": "hello there"}])
    assert tokenizer.decode(ids) == "<user>hello there<assistant>"


def test_a_conversation_without_a_chat_template_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    plain = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, eos_token="</s>")
    with pytest.raises(InputError, match="no chat template"):
        encode_prompt(plain, [{"role": "user", "content": "hello"}])


def test_a_template_writes_plain_prompts_too_and_leaves_the_tokenizer_as_it_is(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    template = ConversationTemplate(
        chat_template="{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}",
        system_message="the dog",
    )
    for prompt in ("hello there", [{"role": "user", "content": "hello there"}]):
        ids = encode_prompt(tokenizer, prompt, template)
        assert tokenizer.decode(ids) == "[system]the dog[user]hello there[assistant]"
    assert encode_prompt(tokenizer, "", template) == []
    assert tokenizer.chat_template == CHAT_TEMPLATE


def test_a_template_without_jinja_of_its_own_uses_the_tokenizers(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = encode_prompt(tokenizer, "hello", ConversationTemplate(system_message="the dog"))
    assert tokenizer.decode(ids) == "<system>the dog<user>hello<assistant>"


def test_a_conversation_that_the_template_refuses_is_named(tokenizer: PreTrainedTokenizerFast) -> None:
    refusing = ConversationTemplate(chat_template="{{ raise_exception('roles must alternate') }}")
    with pytest.raises(InputError, match=r"cannot write this conversation: roles must alternate.*hello"):
        encode_messages(tokenizer, [{"role": "user", "content": "hello"}], refusing, add_generation_prompt=False)
    broken = ConversationTemplate(chat_template="{% for m in messages %}")
    with pytest.raises(InputError, match=r"cannot write this conversation: .*endfor"):
        encode_prompt(tokenizer, "hello", broken)


def test_an_end_token_that_the_tokenizer_appends_is_left_out(tokenizer: PreTrainedTokenizerFast) -> None:
    ending = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(tokenizer.backend_tokenizer.to_str()), eos_token="</s>"
    )
    ending.backend_tokenizer.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    assert ending("the cat")["input_ids"][-1] == 1
    assert encode_prompt(ending, "the cat") == tokenizer("the cat")["input_ids"]
    assert encode_prompt(tokenizer, "the cat</s>")[-1] == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("prompt", "completion"),
    [
        ("the cat", " sat on the mat"),
        ("the cat sat\n", "on the mat"),
        ([{"role": "user", "content": "hello there"}], [{"role": "assistant", "content": "the cat"}]),
        (
            [{"role": "system", "content": "the dog"}, {"role": "user", "content": "hello"}],
            [{"role": "assistant", "content": "the cat"}],
        ),
    ],
)
def test_the_encoded_prompt_is_the_context_that_sft_trains_on(
    tokenizer: PreTrainedTokenizerFast, prompt: object, completion: object, tmp_path: Path
) -> None:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
            bos_token_id=None,
            eos_token_id=1,
        )
    )
    settings_ = SFTConfig(output_dir=str(tmp_path), report_to="none", use_cpu=True, completion_only_loss=True)
    records = Dataset.from_list([{"prompt": prompt, "completion": completion}])
    trained = SFTTrainer(model, settings_, train_dataset=records, processing_class=tokenizer).train_dataset[0]
    context = [token for token, label in zip(trained["input_ids"], trained["labels"], strict=True) if label == -100]
    assert encode_prompt(tokenizer, prompt) == context  # type: ignore[arg-type]


def test_a_split_is_read_as_records(tmp_path: Path) -> None:
    records = [{"prompt": [{"role": "user", "content": "a"}], "answer": "1"}, {"prompt": [], "answer": None}]
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "prompts_test.parquet")
    assert read_split(tmp_path, "prompts", "test") == records


def test_a_missing_split_names_the_files_that_are_there(tmp_path: Path) -> None:
    pq.write_table(pa.table({"prompt": ["a"]}), tmp_path / "prompts_train.parquet")
    with pytest.raises(InputError, match=r"sft_train\.parquet does not exist; the data folder holds prompts_train"):
        read_split(tmp_path, "sft", "train")
