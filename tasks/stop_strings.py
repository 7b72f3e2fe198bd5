"""Texts that end a response. Knows no torch."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class StopStrings:
    """Looks for strings in the text of a response's tokens, special tokens included, from token `first` on."""

    tokenizer: "PreTrainedTokenizerBase"
    strings: Sequence[str]
    first: int = 0

    def end(self, ids: Sequence[int]) -> int | None:
        """How many of the response's tokens lead up to a string, the one that completes it included; None: no string.

        By halving: once a string stands in the text of the first n tokens, it also stands in that of more.
        """
        if not self._occur_in(ids[self.first :]):
            return None
        return bisect_left(range(len(ids) + 1), True, key=lambda count: self._occur_in(ids[self.first : count]))

    def have_ended(self, ids: Sequence[int], num_new: int) -> bool:
        """Whether a string was completed, most likely by one of the last `num_new` tokens; a look at the end alone.

        It may miss a string that `end` finds, never the reverse: a token is at least a byte of text, as a rule.
        """
        longest = max(len(string.encode()) for string in self.strings)
        start = max(self.first, len(ids) - num_new - longest)
        return self._occur_in(ids[start:]) and self._occur_in(ids[self.first :])

    def _occur_in(self, ids: Sequence[int]) -> bool:
        text = self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return any(string in text for string in self.strings)
