"""Prompt and completion as token rows."""

import pytest

from tasks.errors import InputError
from tasks.examples import corpus_texts, encode_pair
from tasks.sft.scratch import CHAT_TEMPLATE
from tasks.templates import ConversationTemplate
from tests.tasks.tiny_models import EOS_ID, make_tokenizer

UNKNOWN_ID = 2


def test_a_completion_is_tokenised_as_it_follows_the_prompt_and_ends_at_eos():
    tokenizer = make_tokenizer()
    prompt, completion = encode_pair(tokenizer, "a b", " c good")
    assert tokenizer.convert_ids_to_tokens(prompt) == ["a", " b"]
    assert tokenizer.convert_ids_to_tokens(completion) == [" c", " good", "<eos>"]


def test_a_completion_that_ends_with_eos_gets_no_second_one():
    assert encode_pair(make_tokenizer(), "a", " b<eos>")[1].count(EOS_ID) == 1


def test_where_a_token_would_span_both_the_prompt_stays_as_generation_sees_it():
    tokenizer = make_tokenizer()
    prompt, completion = encode_pair(tokenizer, "good film", "b")  # together "filmb" is one unknown word
    assert tokenizer.convert_ids_to_tokens(prompt) == ["good", " film"]
    assert tokenizer.convert_ids_to_tokens(completion) == ["b", "<eos>"]


def chat_tokenizer(template=CHAT_TEMPLATE):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def test_messages_go_through_the_chat_template_with_its_generation_prompt():
    tokenizer = chat_tokenizer("{% for m in messages %}{{ ' ' + m['content'] }}{% endfor %}")
    pair = encode_pair(tokenizer, [{"role": "user", "content": "a"}], [{"role": "assistant", "content": "b"}])
    assert [tokenizer.convert_ids_to_tokens(ids) for ids in pair] == [[" a"], [" b", "<eos>"]]


def test_with_a_template_plain_texts_become_a_conversation():
    tokenizer = make_tokenizer()
    template = ConversationTemplate(
        chat_template="{% for m in messages %}{{ ' ' + m['content'] }}{% endfor %}", system_message="film"
    )
    pair = encode_pair(tokenizer, "a", " b", template)
    assert [tokenizer.convert_ids_to_tokens(ids) for ids in pair] == [[" film", " a"], [" b", "<eos>"]]
    spoken = encode_pair(
        tokenizer, [{"role": "user", "content": "a"}], [{"role": "assistant", "content": "b"}], template
    )
    assert spoken == pair


def test_a_text_without_a_prompt_stays_a_plain_text_with_a_template_too():
    tokenizer = make_tokenizer()
    for template in (None, ConversationTemplate(chat_template=CHAT_TEMPLATE)):
        prompt, completion = encode_pair(tokenizer, "", "a good film", template)
        assert prompt == []
        assert tokenizer.convert_ids_to_tokens(completion) == ["a", " good", " film", "<eos>"]


def test_what_a_template_writes_after_the_last_eos_is_left_out():
    template = (
        "{% for m in messages %}{{ ' ' + m['content'] }}"
        "{% if m['role'] == 'assistant' %}{{ eos_token + ' e' }}{% endif %}{% endfor %}"
    )
    pair = encode_pair(
        chat_tokenizer(template), [{"role": "user", "content": "a"}], [{"role": "assistant", "content": "b"}]
    )
    assert pair[1][-1] == EOS_ID
    assert len(pair[1]) == 2


def test_a_template_that_writes_an_answered_prompt_differently_is_refused():
    template = (
        "{{ ' good' if messages | length > 1 else ' bad' }}{% for m in messages %}{{ ' ' + m['content'] }}{% endfor %}"
    )
    with pytest.raises(InputError, match="another context"):
        encode_pair(
            chat_tokenizer(template), [{"role": "user", "content": "a"}], [{"role": "assistant", "content": "b"}]
        )


def test_a_corpus_is_every_text_of_a_record_messages_taken_apart():
    record = {"prompt": [{"role": "user", "content": "a"}], "completion": "b", "line": 3}
    assert corpus_texts(record) == ["a", "b"]
