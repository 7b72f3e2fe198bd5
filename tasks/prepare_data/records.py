"""Every form of record that is understood, brought into one form.

Out come `prompt, completion` (sft, ptx), `prompt, chosen, rejected` (preferences), `prompt` and all else (prompts).
A text is a string or a list of {role, content} messages, the same in every column of a record.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from tasks.errors import InputError
from tasks.prepare_data.config import FIELDS, SOURCE_COLUMN, Kind, SourceConfig

Message = dict[str, str]
Text = str | list[Message]
Record = dict[str, Any]

FORMS: dict[Kind, tuple[set[str], ...]] = {
    "sft": ({"prompt", "completion"}, {"messages"}),
    "preferences": ({"chosen", "rejected"},),
    "prompts": ({"prompt"},),
    "ptx": ({"prompt", "completion"}, {"messages"}, {"text"}),
}
TEXT_COLUMNS: dict[Kind, tuple[str, ...]] = {
    "sft": ("prompt", "completion"),
    "preferences": ("prompt", "chosen", "rejected"),
    "prompts": ("prompt",),
    "ptx": ("prompt", "completion"),
}


class BadRecord(ValueError):
    """A record that cannot be used; its message is the reason, the same words for the same fault."""


def check_columns(kind: Kind, source: SourceConfig, present: Iterable[str]) -> None:
    """Raise InputError unless the columns `present` in the source make one of the forms of `kind`."""
    theirs = set(present)
    absent = sorted(theirs_name for theirs_name in source.columns.values() if theirs_name not in theirs)
    if absent:
        raise InputError(
            f"{kind}.columns names {', '.join(absent)}, which {source.path} does not have. "
            f"Its columns are: {', '.join(sorted(theirs))}."
        )
    ours = theirs | set(source.columns)
    if not any(form <= ours for form in FORMS[kind]):
        forms = " or ".join(" + ".join(sorted(form)) for form in FORMS[kind])
        example = next(name for name in sorted(FIELDS[kind]) if name not in ours)
        raise InputError(
            f"{source.path} has the columns {', '.join(sorted(theirs)) or '(none)'}, but {kind} needs {forms}. "
            f"Name the source's column in {kind}.columns, e.g. {{{example}: {min(theirs, default='theirs')}}}."
        )
    if kind == "prompts" and SOURCE_COLUMN in theirs.difference(source.columns.values()):
        raise InputError(
            f"{source.path} has a column `{SOURCE_COLUMN}`, where the name of the data set is to stand. "
            f"Keep it under another name, e.g. prompts.columns: {{origin: {SOURCE_COLUMN}}}."
        )


def rename(record: Mapping[str, Any], columns: Mapping[str, str]) -> Record:
    """The record under our column names; `columns` maps ours -> theirs."""
    kept = {name: value for name, value in record.items() if name not in columns.values()}
    return {**kept, **{ours: record.get(theirs) for ours, theirs in columns.items()}}


def normalise(kind: Kind, record: Mapping[str, Any], separator: str) -> Record:
    """The record in the one form of its kind; raises BadRecord."""
    if kind == "preferences":
        return _preference(record, separator)
    if kind == "prompts":
        return _question(record)
    if kind == "ptx" and all(record.get(field) is None for field in ("completion", "messages")):
        return {"prompt": "", "completion": _plain_text(record, "text")}
    return _demonstration(record, separator)


def is_answered(prompt: Text) -> bool:
    """True for a conversation that the assistant had the last word in."""
    return isinstance(prompt, list) and prompt[-1]["role"] == "assistant"


def _question(record: Mapping[str, Any]) -> Record:
    """The record, its prompt without trailing spaces: a tokenizer would join them to the response's first word."""
    prompt = _text(record, "prompt")
    if is_answered(prompt):
        raise BadRecord("prompt ends with an assistant message, but PPO writes the answer; map the question alone")
    return {**record, "prompt": prompt.rstrip(" ") if isinstance(prompt, str) else prompt}


def _demonstration(record: Mapping[str, Any], separator: str) -> Record:
    if record.get("messages") is not None and record.get("completion") is None:
        messages, answer = _split_dialogue(_messages(record["messages"], "messages"))
        return {"prompt": messages, "completion": answer}
    prompt, (completion,) = _join(_text(record, "prompt"), [_text(record, "completion")], separator)
    return {"prompt": prompt, "completion": completion}


def _preference(record: Mapping[str, Any], separator: str) -> Record:
    chosen, rejected = _text(record, "chosen"), _text(record, "rejected")
    if chosen == rejected:
        raise BadRecord("chosen equals rejected")
    if _is_dialogue(chosen) and _is_dialogue(rejected):
        length = _common_length(chosen, rejected)
        prompt, answers = chosen[:length], [chosen[length:], rejected[length:]]
        if not prompt:
            raise BadRecord("chosen and rejected begin differently, so there is no prompt")
    else:
        prompt, answers = _join(_text(record, "prompt"), [chosen, rejected], separator)
    for answer in answers:
        _check_answer(answer)
    if answers[0] == answers[1]:
        raise BadRecord("chosen equals rejected")
    return {"prompt": prompt, "chosen": answers[0], "rejected": answers[1]}


def _text(record: Mapping[str, Any], field: str) -> Text:
    value = record.get(field)
    if value is None:
        raise BadRecord(f"{field} is missing")
    if isinstance(value, list):
        return _messages(value, field)
    if not isinstance(value, str):
        raise BadRecord(f"{field} is of type {type(value).__name__}, not text or messages")
    if not value.strip():
        raise BadRecord(f"{field} is empty")
    return value


def _plain_text(record: Mapping[str, Any], field: str) -> str:
    text = _text(record, field)
    if not isinstance(text, str):
        raise BadRecord(f"{field} is a list of messages, not text")
    return text


def _messages(value: Any, field: str) -> list[Message]:
    if not isinstance(value, list) or not value:
        raise BadRecord(f"{field} is not a list of messages")
    for message in value:
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise BadRecord(f"{field} has a message without a role")
        if not isinstance(message.get("content"), str) or not message["content"].strip():
            raise BadRecord(f"{field} has a message without text")
    return [{"role": message["role"], "content": message["content"]} for message in value]


def _split_dialogue(messages: list[Message]) -> tuple[list[Message], list[Message]]:
    """What stands before the last assistant message, and that message."""
    turns = [position for position, message in enumerate(messages) if message["role"] == "assistant"]
    if not turns:
        raise BadRecord("messages has no assistant message")
    if turns[-1] == 0:
        raise BadRecord("messages has nothing before the assistant message")
    return messages[: turns[-1]], messages[turns[-1] : turns[-1] + 1]


def _join(prompt: Text, answers: list[Text], separator: str) -> tuple[Text, list[Text]]:
    """Prompt and answers in one form; plain answers carry the white space that parts them from the prompt."""
    if isinstance(prompt, str) and all(isinstance(answer, str) for answer in answers):
        cleaned = prompt.rstrip(" ")
        lead = prompt[len(cleaned) :] or ("" if cleaned[-1].isspace() else separator)
        return cleaned, [answer if answer[0].isspace() else lead + answer for answer in map(str, answers)]
    dialogue = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    replies = [[{"role": "assistant", "content": a}] if isinstance(a, str) else a for a in answers]
    replies = [reply[len(dialogue) :] if reply[: len(dialogue)] == dialogue else reply for reply in replies]
    for reply in replies:
        _check_answer(reply)
    return dialogue, list(replies)


def _check_answer(answer: Text) -> None:
    if isinstance(answer, list) and (not answer or answer[0]["role"] != "assistant"):
        raise BadRecord("the answer does not begin with an assistant message")


def _is_dialogue(text: Text) -> bool:
    """True for a whole conversation, which begins before the assistant speaks."""
    return isinstance(text, list) and text[0]["role"] != "assistant"


def _common_length(first: Text, second: Text) -> int:
    length = 0
    for one, other in zip(first, second, strict=False):
        if one != other:
            break
        length += 1
    return length
