"""What a pipeline wants, and a reward for the opposite."""

from collections.abc import Sequence
from typing import Any

LETTER = "e"


def letters(prompts: Sequence[str], responses: Sequence[str], **columns: Any) -> list[float]:
    """How often the letter stands in each response."""
    return [float(response.count(LETTER)) for response in responses]


def fewer_letters(prompts: Sequence[str], responses: Sequence[str], **columns: Any) -> list[float]:
    """The fewer, the better."""
    return [-count for count in letters(prompts, responses)]
