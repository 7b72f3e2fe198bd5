"""Prompts that are always asked, and how the answers differ, word by word."""

from collections.abc import Mapping, Sequence
from typing import Any

from tasks.data import Text, prompt_text
from tasks.evaluate.names import SIDES
from tasks.markdown import escape
from tasks.word_diff import word_changes


def canary_rows(canaries: Sequence[Text], answers: Mapping[str, Sequence[str]]) -> list[dict[str, str]]:
    """Each canary with its answer by SFT (before), PPO (after) and the champion, where there is one."""
    return [
        {"prompt": prompt_text(canary)}
        | {SIDES[name]: answers[name][index] for name in ("sft", "champion", "ppo") if name in answers}
        for index, canary in enumerate(canaries)
    ]


def canary_figures(rows: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """How many canaries there are, and the share that PPO answers otherwise than SFT and than the champion."""
    if not rows:
        return {}
    figures: dict[str, Any] = {"num_canaries": len(rows), "canary_changed": _changed_share(rows, "before")}
    return figures | ({"champion_canary_changed": _changed_share(rows, "champion")} if "champion" in rows[0] else {})


def diff(before: str, after: str) -> str:
    """`after` in Markdown as a change of `before`: words that left are struck out, words that came are bold."""
    return "".join(
        escape(change.kept) + _marked("~~", change.gone) + _marked("**", change.come)
        for change in word_changes(before, after)
    )


def _marked(mark: str, words: str) -> str:
    """The words between marks, which must touch them; white space stays outside."""
    inner = words.strip()
    if not inner:
        return escape(words)
    start = words.index(inner)
    return escape(words[:start]) + mark + escape(inner) + mark + escape(words[start + len(inner) :])


def _changed_share(rows: Sequence[Mapping[str, str]], side: str) -> float:
    return sum(row["after"] != row[side] for row in rows) / len(rows)
