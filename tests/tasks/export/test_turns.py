"""Chat templates of the kinds that are about, taken apart."""

import pytest
from tokenizers import processors

from tasks.errors import InputError
from tasks.export.package import PLAIN_TEMPLATE
from tasks.export.turns import take_apart
from tests.tasks.evaluate import tiny_chain

LOOP = "{% for message in messages %}"
END = "{% endfor %}"
CHATML = (
    LOOP + "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}" + END
) + "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
QWEN = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\nYou are helpful.<|im_end|>\\n' }}{% endif %}"
) + CHATML
ZEPHYR = (
    LOOP + "{{ '<|' + message['role'] + '|>\\n' + message['content'] + eos_token + '\\n' }}" + END
) + "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
LLAMA_3 = (
    "{{ bos_token }}"
    + LOOP
    + "{{ '<|head|>' + message['role'] + '<|/head|>\\n\\n' + message['content'] | trim + '<|eot|>' }}"
    + END
    + "{% if add_generation_prompt %}{{ '<|head|>assistant<|/head|>\\n\\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    + LOOP
    + "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    + "{{ '<turn>' + role + '\\n' + message['content'] + '</turn>\\n' }}"
    + END
    + "{% if add_generation_prompt %}{{ '<turn>model\\n' }}{% endif %}"
)
MISTRAL = (
    "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] + '\\n\\n' %}"
    "{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}"
    + LOOP
    + "{% if message['role'] == 'user' %}"
    + "{{ '[INST] ' + (system if loop.first else '') + message['content'] + ' [/INST]' }}"
    + "{% else %}{{ message['content'] + eos_token }}{% endif %}"
    + END
)


def tokenizer_with(template, bos=False):
    tokenizer = tiny_chain.make_tokenizer()
    tokenizer.chat_template = template
    if bos:
        tokenizer.bos_token = "very"
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing("very $0", None, [("very", 8)])
    return tokenizer


def test_chatml():
    turns = take_apart(tokenizer_with(CHATML))

    assert turns.start == ""
    assert turns.around == {role: (f"<|im_start|>{role}\n", "<|im_end|>\n") for role in ("system", "user", "assistant")}
    assert (turns.answer, turns.default_system) == ("<|im_start|>assistant\n", None)


def test_a_system_message_that_is_written_where_none_is_given():
    turns = take_apart(tokenizer_with(QWEN))

    assert turns.default_system == "You are helpful."
    assert turns.write([{"role": "user", "content": "Hi"}]) == (
        "<|im_start|>system\nYou are helpful.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert "helpful" not in turns.write([{"role": "system", "content": "S"}, {"role": "user", "content": "Hi"}])


def test_turns_that_end_in_eos():
    turns = take_apart(tokenizer_with(ZEPHYR))

    assert turns.around["assistant"] == ("<|assistant|>\n", "<eos>\n")
    assert turns.answer == "<|assistant|>"


def test_a_template_that_begins_with_bos():
    turns = take_apart(tokenizer_with(LLAMA_3, bos=True))

    assert turns.start == "very"
    assert turns.around["system"] == ("<|head|>system<|/head|>\n\n", "<|eot|>")
    assert turns.around["user"] == ("<|head|>user<|/head|>\n\n", "<|eot|>")


def test_a_template_without_system_messages():
    turns = take_apart(tokenizer_with(GEMMA, bos=True))

    assert set(turns.around) == {"user", "assistant"}
    assert turns.around["assistant"] == ("<turn>model\n", "</turn>\n")
    assert turns.start == "very"


def test_a_model_of_plain_text_has_nothing_around_its_messages():
    turns = take_apart(tokenizer_with(PLAIN_TEMPLATE))

    assert set(turns.around.values()) == {("", "")}
    assert (turns.start, turns.answer, turns.default_system) == ("", "", None)


@pytest.mark.parametrize(
    "template",
    [
        pytest.param(MISTRAL, id="a system message inside the user's turn"),
        pytest.param(CHATML.replace("message['content']", "message['content'] | upper"), id="changed messages"),
        pytest.param("{{ messages[-1]['content'] }}", id="the last message alone"),
        pytest.param(LOOP + "{{ loop.index }}{{ message['content'] }}" + END, id="numbered messages"),
    ],
)
def test_a_template_that_does_more_than_surround_messages_is_refused(template):
    with pytest.raises(InputError, match="The chat template does more than"):
        take_apart(tokenizer_with(template))
