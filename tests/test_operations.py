"""docs/operations.md quotes what the program says: each quoted message is looked up in the sources."""

import ast
import re
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent
PAGE = (PROJECT / "docs" / "operations.md").read_text()
SOURCES = [path for folder in ("flows", "tasks", "infra") for path in (PROJECT / folder).rglob("*.py")]
DIFFERS = "…"


def text_of(node: ast.Constant | ast.JoinedStr) -> str:
    """A string as it stands in the source, with … for what is only known in a run."""
    parts = node.values if isinstance(node, ast.JoinedStr) else [node]
    return "".join(str(part.value) if isinstance(part, ast.Constant) else DIFFERS for part in parts)


MESSAGES = "\n".join(
    text_of(node).replace("\n", " ")
    for path in SOURCES
    for node in ast.walk(ast.parse(path.read_text()))
    if isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))
)
SECTION = PAGE.partition("## The store refuses")[2].partition("\n## ")[0]
QUOTES = [*re.findall(r"^> (.+)$", PAGE, re.MULTILINE), *re.findall(r"^\| `(.+?)` \|", SECTION, re.MULTILINE)]


def test_there_are_quotes() -> None:
    assert len(QUOTES) >= 35
    assert len(MESSAGES) > 10_000


@pytest.mark.parametrize("quote", QUOTES)
def test_a_quoted_message_is_one_that_the_program_says(quote: str) -> None:
    fixed = [part for part in quote.split(DIFFERS) if part]
    assert max(map(len, fixed)) >= 10, "too short to be found"
    assert re.search(".*".join(map(re.escape, fixed)), MESSAGES), quote


def test_every_command_of_ours_is_there() -> None:
    modules = set(re.findall(r"python -m ((?:infra|tasks)\.\w+)", PAGE))
    assert len(modules) >= 3
    assert [name for name in modules if not (PROJECT / f"{name.replace('.', '/')}.py").is_file()] == []
