"""How a text became another, word by word."""

import difflib
import re
from dataclasses import dataclass

WORDS = re.compile(r"\s*\S+|\s+$")


@dataclass(frozen=True)
class Change:
    """A piece of both texts that is the same, or what left and what came in its place; the others are empty."""

    kept: str = ""
    gone: str = ""
    come: str = ""


def word_changes(before: str, after: str) -> list[Change]:
    """The pieces in their order: kept and gone together are `before`, kept and come together `after`."""
    old, new = WORDS.findall(before), WORDS.findall(after)
    changes = []
    for kind, old_start, old_end, new_start, new_end in difflib.SequenceMatcher(
        None, old, new, autojunk=False
    ).get_opcodes():
        gone, come = "".join(old[old_start:old_end]), "".join(new[new_start:new_end])
        changes.append(Change(kept=come) if kind == "equal" else Change(gone=gone, come=come))
    return changes
