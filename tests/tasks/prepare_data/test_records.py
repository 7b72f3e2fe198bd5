"""Every form of record comes out in one form; what cannot be used says why."""

from typing import Any

import pytest

from tasks.errors import InputError
from tasks.prepare_data.config import SourceConfig
from tasks.prepare_data.records import BadRecord, check_columns, normalise, rename

USER = {"role": "user", "content": "Hi"}
GOOD = {"role": "assistant", "content": "Hello!"}
BAD = {"role": "assistant", "content": "What?"}


@pytest.mark.parametrize(
    ("prompt", "completion", "expected"),
    [
        ("Hi", "there", ("Hi", " there")),
        ("Hi", " there", ("Hi", " there")),
        ("Hi ", "there", ("Hi", " there")),
        ("Hi\n", "there", ("Hi\n", "there")),
        ("Hi", "\nthere", ("Hi", "\nthere")),
    ],
)
def test_a_plain_completion_carries_the_space_that_parts_it_from_the_prompt(
    prompt: str, completion: str, expected: tuple[str, str]
) -> None:
    record = normalise("sft", {"prompt": prompt, "completion": completion, "id": 3}, " ")
    assert record == {"prompt": expected[0], "completion": expected[1]}


def test_the_separator_can_be_chosen() -> None:
    assert normalise("sft", {"prompt": "Q", "completion": "A"}, "\n")["completion"] == "\nA"


def test_messages_are_split_before_the_last_assistant_message() -> None:
    messages = [USER, BAD, USER, {**GOOD, "name": "bot"}, USER]
    record = normalise("sft", {"messages": messages}, " ")
    assert record == {"prompt": [USER, BAD, USER], "completion": [GOOD]}


def test_a_plain_side_of_a_conversation_becomes_a_message() -> None:
    assert normalise("sft", {"prompt": "Hi", "completion": [GOOD]}, " ") == {"prompt": [USER], "completion": [GOOD]}
    assert normalise("sft", {"prompt": [USER], "completion": "Hello!"}, " ") == {"prompt": [USER], "completion": [GOOD]}


def test_a_completion_that_repeats_its_prompt_loses_it() -> None:
    record = {"prompt": [USER], "completion": [USER, GOOD]}
    assert normalise("sft", record, " ") == {"prompt": [USER], "completion": [GOOD]}


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
        {"prompt": "Hi", "chosen": [GOOD], "rejected": [BAD]},
        {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"prompt": "Hi", "chosen": [USER, GOOD], "rejected": [USER, BAD]},
    ],
)
def test_every_form_of_conversational_preference_comes_out_alike(record: dict[str, Any]) -> None:
    assert normalise("preferences", record, " ") == {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}


def test_a_plain_preference_keeps_its_three_texts() -> None:
    record = {"prompt": "Hi", "chosen": "Hello!", "rejected": " What?"}
    assert normalise("preferences", record, " ") == {"prompt": "Hi", "chosen": " Hello!", "rejected": " What?"}


def test_prompts_keep_their_other_columns() -> None:
    assert normalise("prompts", {"prompt": "1 + 1 =  ", "answer": 2}, " ") == {"prompt": "1 + 1 =", "answer": 2}


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"text": " Once.\n"}, ("", " Once.\n")),
        ({"text": None, "prompt": "Q", "completion": "A"}, ("Q", " A")),
        ({"text": "ignored", "prompt": "Q", "completion": "A"}, ("Q", " A")),
        ({"text": "ignored", "messages": [USER, GOOD]}, ([USER], [GOOD])),
    ],
)
def test_a_ptx_record_is_a_demonstration_or_a_text_without_a_prompt(record: dict[str, Any], expected: Any) -> None:
    assert normalise("ptx", record, " ") == {"prompt": expected[0], "completion": expected[1]}


@pytest.mark.parametrize(
    ("kind", "record", "reason"),
    [
        ("sft", {"prompt": "a", "completion": None}, "completion is missing"),
        ("sft", {"prompt": "a"}, "completion is missing"),
        ("sft", {"prompt": " ", "completion": "b"}, "prompt is empty"),
        ("sft", {"prompt": "a", "completion": 5}, "completion is of type int, not text or messages"),
        ("sft", {"messages": "a"}, "messages is not a list of messages"),
        ("sft", {"messages": []}, "messages is not a list of messages"),
        ("sft", {"messages": [USER]}, "messages has no assistant message"),
        ("sft", {"messages": [GOOD]}, "messages has nothing before the assistant message"),
        ("sft", {"messages": [{"role": "user", "content": None}, GOOD]}, "messages has a message without text"),
        ("sft", {"messages": [{"content": "x"}, GOOD]}, "messages has a message without a role"),
        ("sft", {"prompt": [USER], "completion": [USER]}, "the answer does not begin with an assistant message"),
        ("preferences", {"prompt": "a", "chosen": "b", "rejected": "b"}, "chosen equals rejected"),
        ("preferences", {"prompt": "a", "chosen": "b", "rejected": " b"}, "chosen equals rejected"),
        ("preferences", {"chosen": "b", "rejected": "c"}, "prompt is missing"),
        (
            "preferences",
            {"chosen": [USER, GOOD], "rejected": [USER]},
            "the answer does not begin with an assistant message",
        ),
        (
            "preferences",
            {"chosen": [USER, GOOD], "rejected": [{"role": "user", "content": "Bye"}, GOOD]},
            "chosen and rejected begin differently, so there is no prompt",
        ),
        ("prompts", {"prompt": ""}, "prompt is empty"),
        (
            "prompts",
            {"prompt": [USER, GOOD]},
            "prompt ends with an assistant message, but PPO writes the answer; map the question alone",
        ),
        ("ptx", {"text": " "}, "text is empty"),
        ("ptx", {"text": [USER]}, "text is a list of messages, not text"),
        ("ptx", {"prompt": "a"}, "text is missing"),
    ],
)
def test_an_unusable_record_says_why(kind: Any, record: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadRecord) as caught:
        normalise(kind, record, " ")
    assert str(caught.value) == reason


def test_columns_map_ours_to_theirs() -> None:
    record = {"question": "q", "answer": "a", "prompt": "old", "id": 1}
    assert rename(record, {"prompt": "question"}) == {"prompt": "q", "answer": "a", "id": 1}


def test_a_column_that_is_not_there_names_those_that_are() -> None:
    with pytest.raises(InputError, match=r"f\.csv has the columns answer, question, but sft needs .*sft\.columns"):
        check_columns("sft", SourceConfig(path="f.csv"), ["question", "answer"])
    mapped = SourceConfig(path="f.csv", columns={"prompt": "question", "completion": "reply"})
    with pytest.raises(
        InputError, match=r"names reply, which f\.csv does not have\. Its columns are: answer, question"
    ):
        check_columns("sft", mapped, ["question", "answer"])
    check_columns(
        "sft",
        SourceConfig(path="f.csv", columns={"prompt": "question", "completion": "answer"}),
        ["question", "answer"],
    )
