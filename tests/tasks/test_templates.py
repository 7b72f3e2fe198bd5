"""Conversation templates: read from ColossalChat's files, put around prompts, and what they end a response with."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from pydantic import ValidationError
from transformers import PreTrainedTokenizerFast

from tasks.config import Config, SamplingConfig
from tasks.templates import ConversationTemplate, with_stops
from tests.tasks.tiny_models import make_tokenizer

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
COLOSSAL_FILE = {
    "chat_template": CHATML,
    "system_message": "Think first.\n",
    "stop_ids": [31007, 326, 30962],
    "end_of_assistant": "<|im_end|>",
    "response_format_tags": {"think_start": {"text": "<think>", "num_occur": 1}},
}
USER = {"role": "user", "content": "Hi"}


class Options(Config):
    """A stage's config with such a field."""

    template: ConversationTemplate | None = None


def write(path: Path, content: Any) -> str:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return str(path)


def tokenizer_with(*special: str) -> PreTrainedTokenizerFast:
    """Words have the ids 3 to 18; the first special token gets 19."""
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(list(special), special_tokens=True)
    return tokenizer


def test_a_path_stands_for_the_content_of_its_file(tmp_path: Path) -> None:
    from_file = Options.model_validate({"template": write(tmp_path / "t.json", COLOSSAL_FILE)})
    assert from_file == Options.model_validate({"template": COLOSSAL_FILE})
    dumped = from_file.model_dump(mode="json")
    assert dumped["template"] == {**COLOSSAL_FILE, "stop_strings": []}
    assert Options.model_validate_json(json.dumps(dumped)) == from_file


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"t\.json does not exist; give the JSON file of a conversation template"),
        ("{'chat_template': 1}", r"t\.json is not a JSON file: Expecting property name"),
        ("[1]", r"t\.json holds a list, expected an object with chat_template, system_message"),
        ({"stop_id": [2]}, r"t\.json has the unknown option 'stop_id'; did you mean stop_ids\?"),
        ({"roles": []}, r"t\.json has the unknown option 'roles'; its options are chat_template, system_message"),
        ({"chat_template": "Qwen/Qwen2.5-3B"}, "expected a Jinja template, got 'Qwen/Qwen2.5-3B'; give its text"),
        ({"stop_strings": [""]}, "at least 1 character"),
    ],
)
def test_a_file_that_is_no_template_says_what_is_wrong(tmp_path: Path, content: Any, message: str) -> None:
    path = str(tmp_path / "t.json") if content is None else write(tmp_path / "t.json", content)
    with pytest.raises(ValidationError, match=message):
        Options.model_validate({"template": path})


def test_the_form_takes_a_path_or_the_options_and_no_others() -> None:
    schema = Options.model_json_schema()
    for good in ("t.json", None, {"system_message": "Be kind."}):
        jsonschema.validate({"template": good}, schema)
    for bad in (3, {"system_mesage": "Be kind."}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({"template": bad}, schema)


def test_a_plain_prompt_becomes_the_users_message_after_the_system_message() -> None:
    system = {"role": "system", "content": "Be kind."}
    assert ConversationTemplate().conversation("Hi") == [USER]
    assert ConversationTemplate(system_message="Be kind.").conversation("Hi") == [system, USER]
    assert ConversationTemplate(system_message="Be kind.").conversation([USER]) == [system, USER]


def test_a_conversation_keeps_its_own_system_message() -> None:
    messages = [{"role": "system", "content": "Be brief."}, USER]
    assert ConversationTemplate(system_message="Be kind.").conversation(messages) == messages


def test_the_chat_template_becomes_the_tokenizers_and_is_saved_with_it(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    ConversationTemplate(chat_template=CHATML).apply_to(tokenizer)
    tokenizer.save_pretrained(tmp_path)
    assert PreTrainedTokenizerFast.from_pretrained(tmp_path).chat_template == CHATML
    ConversationTemplate(system_message="Be kind.").apply_to(tokenizer)
    assert tokenizer.chat_template == CHATML


def test_stop_ids_are_read_as_colossalchat_reads_them() -> None:
    tokenizer = make_tokenizer()
    assert ConversationTemplate(stop_ids=[5]).stops(tokenizer) == ([5], [])
    in_a_row = tokenizer.convert_tokens_to_ids(["good", " film"])
    assert ConversationTemplate(stop_ids=in_a_row).stops(tokenizer) == ([], ["good film"])
    assert ConversationTemplate(stop_ids=[[5], [7], in_a_row]).stops(tokenizer) == ([5, 7], ["good film"])
    assert ConversationTemplate().stops(tokenizer) == ([], [])


def test_the_end_of_the_assistant_and_stop_strings_end_a_response() -> None:
    template = ConversationTemplate(stop_strings=["User:", "\n\n"], end_of_assistant="<|im_end|>")
    assert template.stops(make_tokenizer()) == ([], ["User:", "\n\n", "<|im_end|>"])


def test_a_string_that_is_a_special_token_ends_a_response_as_that_token() -> None:
    template = ConversationTemplate(stop_strings=["User:", "<|user|>"], end_of_assistant="<|im_end|>", stop_ids=[5])
    assert template.stops(tokenizer_with("<|im_end|>", "<|user|>")) == ([5, 19, 20], ["User:"])


def test_sampling_gets_the_templates_strings_beside_its_own() -> None:
    sampling = SamplingConfig(response_length=9, stop_strings=["###"])
    template = ConversationTemplate(stop_strings=["User:"], stop_ids=[5])
    assert with_stops(template, sampling, make_tokenizer()) == (
        SamplingConfig(response_length=9, stop_strings=["###", "User:"]),
        [5],
    )
    assert with_stops(None, sampling, make_tokenizer()) == (sampling, [])
    assert sampling.stop_strings == ["###"]
