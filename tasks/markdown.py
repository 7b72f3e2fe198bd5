"""Tables in Markdown."""

from collections.abc import Sequence

_ESCAPES = str.maketrans(
    {character: f"\\{character}" for character in "\\`*_[]|#~"} | {"<": "&lt;", ">": "&gt;", "\n": "<br>", "\r": ""}
)


def escape(text: str) -> str:
    """Text that shows as it is in a cell of a Markdown table."""
    return text.translate(_ESCAPES)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of cells that are Markdown already."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [header, ["---"] * len(header), *rows])
