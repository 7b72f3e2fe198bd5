"""How a conversation becomes text, and what ends an answer to it. Knows no torch."""

import difflib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, GetJsonSchemaHandler, field_validator, model_validator
from pydantic_core import CoreSchema

from tasks.config import Config, SamplingConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, str]
Text = str | list[Message]
NonEmpty = Annotated[str, Field(min_length=1)]


class ConversationTemplate(Config):
    """How conversations are written; in its place may stand the path of a JSON file of it, such as ColossalChat's.

    With a template a plain prompt becomes the user's message in a conversation.
    """

    chat_template: str | None = None
    """Jinja, in the form that transformers' tokenizers take; None = the tokenizer's own."""
    system_message: NonEmpty | None = None
    """Put before each conversation that does not begin with a system message of its own; None = nothing is."""
    stop_ids: list[int] | list[list[int]] = Field(default_factory=list)
    """Token ids that end a response where they come one after the other, as ColossalChat reads its list; a list of such
    lists gives several ends. The model's own EOS always ends it too."""
    stop_strings: list[NonEmpty] = Field(default_factory=list)
    """Texts that end a response, beside those of `sampling`."""
    end_of_assistant: NonEmpty | None = None
    """What the template writes after an answer; ends a response like a stop string. Our reward models read the score at
    EOS: where they judge, it should be the tokenizer's EOS."""
    response_format_tags: dict[str, Any] | None = None
    """Tags of the answer's parts, for the rules among the rewards that state none themselves."""

    def apply_to(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        """Make the chat template the tokenizer's own, so that it is also saved with it."""
        if self.chat_template is not None:
            tokenizer.chat_template = self.chat_template

    def conversation(self, prompt: Text) -> list[Message]:
        """The prompt as messages, the system message first."""
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        if self.system_message is None or [message["role"] for message in messages[:1]] == ["system"]:
            return messages
        return [{"role": "system", "content": self.system_message}, *messages]

    def stops(self, tokenizer: "PreTrainedTokenizerBase") -> tuple[list[int], list[str]]:
        """Token ids and strings that end a response.

        A string that is a token of its own counts as that token, several ids in a row as their text.
        """
        rows = self.stop_sequences
        texts = [tokenizer.decode(row, clean_up_tokenization_spaces=False) for row in rows if len(row) > 1]
        texts += self.stop_strings + ([] if self.end_of_assistant is None else [self.end_of_assistant])
        tokens: dict[str, int] = tokenizer.get_added_vocab()
        ids = {row[0] for row in rows if len(row) == 1} | {tokens[text] for text in texts if text in tokens}
        return sorted(ids), [text for text in dict.fromkeys(texts) if text not in tokens]

    @property
    def stop_sequences(self) -> list[list[int]]:
        """The lists of ids that end a response."""
        nested = [item for item in self.stop_ids if isinstance(item, list)]
        flat = [item for item in self.stop_ids if isinstance(item, int)]
        return [*nested, flat] if flat else nested

    @model_validator(mode="before")
    @classmethod
    def _read(cls, value: Any) -> Any:
        return _read_file(Path(value).expanduser(), list(cls.model_fields)) if isinstance(value, str) else value

    @field_validator("chat_template")
    @classmethod
    def _is_jinja(cls, template: str | None) -> str | None:
        if template is not None and "{" not in template:
            raise ValueError(f"expected a Jinja template, got {template!r:.80}; give its text, not a model's name")
        return template

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """The options, or the path of a file."""
        return {"anyOf": [handler(schema), {"type": "string", "title": "path"}]}


def with_stops(
    template: ConversationTemplate | None, sampling: SamplingConfig, tokenizer: "PreTrainedTokenizerBase"
) -> tuple[SamplingConfig, list[int]]:
    """`sampling` with the template's stop strings too, and the token ids with which it ends a response."""
    if template is None:
        return sampling, []
    ids, strings = template.stops(tokenizer)
    return sampling.model_copy(update={"stop_strings": [*sampling.stop_strings, *strings]}), ids


def _read_file(path: Path, known: list[str]) -> dict[str, Any]:
    """The options in a JSON file; raises ValueError for a file that has none."""
    try:
        options = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"{path.absolute()} does not exist; give the JSON file of a conversation template") from error
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is not a JSON file: {error}") from error
    if not isinstance(options, dict):
        raise ValueError(f"{path} holds a {type(options).__name__}, expected an object with {', '.join(known)}")
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"its options are {', '.join(known)}"
            raise ValueError(f"{path} has the unknown option {name!r}; {hint}")
    return options
