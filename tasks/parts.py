"""Parts of the records that share no prompt, told by the prompt alone: stable over runs, machines and other records."""

import hashlib
from typing import Literal

from tasks.templates import Text

Half = Literal["first", "second"]
HALVES: tuple[Half, Half] = ("first", "second")


def canonical(prompt: Text) -> str:
    """The text by which prompts are told apart; a plain prompt equals the same text as the user's only message."""
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    return "\x1e".join(f"{message['role']}\x1f{message['content'].strip()}" for message in messages)


def part_of(prompt: Text, num_parts: int, salt: str) -> int:
    """0 to num_parts - 1, each for about as many prompts; divisions of different `salt` are independent."""
    digest = hashlib.sha256(f"{salt}\n{canonical(prompt)}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % num_parts


def half_of(prompt: Text) -> Half:
    """The half of the records that the prompt's stand in."""
    return HALVES[part_of(prompt, len(HALVES), "half")]
