"""Prompts in a file that a person wrote. Knows no torch."""

import json
from pathlib import Path
from typing import Any


def read_prompt_file(path: Path) -> list[dict[str, Any]]:
    """The records of a file, each with a `prompt`: text, or messages with role and content.

    A .json file holds a list and a .jsonl file a line for each: a prompt, or an object with `prompt` and other columns.
    In any other file each line that is not empty is a prompt. Raises ValueError for what is none of these.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path.absolute()} cannot be read ({error}); give a file of prompts") from error
    if path.suffix == ".json":
        items = _parse(text, f"{path}")
    elif path.suffix == ".jsonl":
        lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
        items = [_parse(line, f"{path}, line {number}") for number, line in lines]
    else:
        items = [line.strip() for line in text.split("\n") if line.strip()]
    if not isinstance(items, list) or not items:
        raise ValueError(f"{path} holds no list of prompts; expected at least one")
    return [_record(item, f"{path}, prompt {number}") for number, item in enumerate(items, start=1)]


def _record(item: Any, place: str) -> dict[str, Any]:
    record: dict[str, Any] = item if isinstance(item, dict) else {"prompt": item}
    prompt = record.get("prompt")
    if not isinstance(prompt, str) and not _are_messages(prompt):
        raise ValueError(f"{place} is {prompt!r:.80}; expected text, or messages with role and content")
    return record


def _are_messages(prompt: Any) -> bool:
    return isinstance(prompt, list) and all(
        isinstance(message, dict) and isinstance(message.get("role"), str) and isinstance(message.get("content"), str)
        for message in prompt
    )


def _parse(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"{place} is not JSON: {error}") from error
