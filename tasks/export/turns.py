"""A chat template taken apart: what it writes before and after each message.

Templates of another language can be made of that. What a template does beyond it (a system message inside the user's
turn, tools) cannot be taken apart so, and is refused.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from tasks.errors import InputError
from tasks.templates import Message

SYSTEM, USER, ASSISTANT = "system", "user", "assistant"
MARKS = {SYSTEM: "Qsystem0Q", USER: "Quser0Q", ASSISTANT: "Qassistant0Q"}  # stand for messages, occur in no template
SECOND = "Qsecond0Q"
EXAMPLES = ("Good morning.", "What is\n\n1 + 1?", "Two.", "And “zwei” {{ in }} German?", "Drei: no, that is three.")


@dataclass(frozen=True)
class Turns:
    """What stands around the messages of a conversation."""

    start: str  # at the very beginning, such as a BOS token
    around: Mapping[str, tuple[str, str]]  # before and after a message, by its role; no system: it cannot be written
    answer: str  # before the answer that is asked for
    default_system: str | None  # written where the conversation brings no system message

    def write(self, messages: Sequence[Message]) -> str:
        """The conversation as far as the answer that is asked for."""
        if self.default_system is not None and messages[0]["role"] != SYSTEM:
            messages = [{"role": SYSTEM, "content": self.default_system}, *messages]
        turns = (self.around[message["role"]] for message in messages)
        texts = (before + message["content"] + after for (before, after), message in zip(turns, messages, strict=False))
        return self.start + "".join(texts) + self.answer


def take_apart(tokenizer: PreTrainedTokenizerBase) -> Turns:
    """The turns of the tokenizer's chat template; raises InputError for one that does more than surround messages."""
    try:
        turns = _guess(tokenizer)
    except (ValueError, TemplateError) as error:
        raise _refused(f"{error}") from error
    for messages in _conversations(with_system=SYSTEM in turns.around):
        expected, found = _render(tokenizer, messages, ask=True), turns.write(messages)
        if expected != found:
            raise _refused(f"it writes {expected!r:.300} where the turns give {found!r:.300}")
    return turns


def _guess(tokenizer: PreTrainedTokenizerBase) -> Turns:
    """The turns as marked messages show them; ValueError where a part is not in its place."""
    user, assistant = _message(USER), _message(ASSISTANT)
    first = _render(tokenizer, [user])
    head, after_user = _split(first, MARKS[USER])
    asked = _render(tokenizer, [user], ask=True)
    dialogue = _render(tokenizer, [user, assistant])
    longer = _render(tokenizer, [user, assistant, {"role": USER, "content": SECOND}])
    before_answer, after_answer = _split(_split(dialogue, MARKS[USER])[1], MARKS[ASSISTANT])
    between = _split(_split(longer, MARKS[ASSISTANT])[1], SECOND)[0]
    before_user = _less(between, prefix=after_answer)
    bos = tokenizer.bos_token or ""
    start = bos if bos and head.startswith(bos) else ""
    around = {
        USER: (before_user, after_user),
        ASSISTANT: (_less(before_answer, prefix=after_user), after_answer),
    }
    system = _system(tokenizer, start, before_user)
    default = _less(_less(head, prefix=start), suffix=before_user)
    if default and system is None:
        start, default = start + default, ""
    return Turns(
        start=start,
        around=around if system is None else {SYSTEM: system, **around},
        answer=_less(asked, prefix=first),
        default_system=_less(default, *system) if default and system else None,
    )


def _system(tokenizer: PreTrainedTokenizerBase, start: str, before_user: str) -> tuple[str, str] | None:
    """What stands around a system message; None for a template that takes none."""
    try:
        text = _render(tokenizer, [_message(SYSTEM), _message(USER)])
    except TemplateError:
        return None
    before, rest = _split(text, MARKS[SYSTEM])
    after = _less(_split(rest, MARKS[USER])[0], suffix=before_user)
    return _less(before, prefix=start), after


def _conversations(with_system: bool) -> list[list[Message]]:
    roles = itertools.cycle((USER, ASSISTANT))
    dialogue = [{"role": role, "content": text} for role, text in zip(roles, EXAMPLES, strict=False)]
    found = [dialogue[:1], dialogue[2:3], dialogue[:3], dialogue]
    system = {"role": SYSTEM, "content": "Be brief.\nBe kind."}
    return found + ([[system, *messages] for messages in found] if with_system else [])


def _message(role: str) -> Message:
    return {"role": role, "content": MARKS[role]}


def _render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], ask: bool = False) -> str:
    return str(tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=ask))


def _split(text: str, mark: str) -> tuple[str, str]:
    if text.count(mark) != 1:
        raise ValueError(f"a message stands {text.count(mark)} times in {text!r:.300}")
    before, _, after = text.partition(mark)
    return before, after


def _less(text: str, prefix: str = "", suffix: str = "") -> str:
    """The text without its beginning and end, which it must have."""
    if not text.startswith(prefix) or not text.endswith(suffix) or len(text) < len(prefix) + len(suffix):
        raise ValueError(f"{text!r:.300} does not begin with {prefix!r:.100} and end with {suffix!r:.100}")
    return text[len(prefix) : len(text) - len(suffix)]


def _refused(why: str) -> InputError:
    return InputError(
        f"The chat template does more than write something before and after each message ({why}), which cannot be "
        "carried over into a Modelfile. Leave `modelfile` out, or give the model a plainer template."
    )
