"""Nested mappings as one, each value by its dotted name."""

from collections.abc import Mapping
from typing import Any

LONGEST_FACT = 200  # characters


def flattened(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values by dotted name; an empty group stays as it is."""
    flat: dict[str, Any] = {}
    for name, value in nested.items():
        if isinstance(value, Mapping) and value:
            flat |= flattened(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def short_facts(report: Mapping[str, Any]) -> dict[str, Any]:
    """A report's numbers and short texts by dotted name; no lists."""

    def is_short(value: Any) -> bool:
        return isinstance(value, int | float) or (isinstance(value, str) and len(value) <= LONGEST_FACT)

    return {name: value for name, value in flattened(report).items() if is_short(value)}
