"""What became of a source's records: how many were read, used, repeated, unusable and why."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tasks.errors import InputError
from tasks.prepare_data.config import Kind
from tasks.prepare_data.records import BadRecord, Record

SHOWN_EXAMPLES = 5


@dataclass
class Tally:
    """Counts of one source's records, filled while they are read."""

    num_read: int = 0
    num_duplicates: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)
    conversational: bool | None = None

    def check_form(self, record: Record) -> None:
        """Raise BadRecord unless the record is plain text or a conversation as the first good one was."""
        conversational = isinstance(record["prompt"], list)
        if self.conversational is None:
            self.conversational = conversational
        elif self.conversational != conversational:
            raise BadRecord("a conversation among plain texts" if conversational else "plain text among conversations")

    def reject(self, reason: str, record: Mapping[str, Any]) -> None:
        """Count a bad record under its reason; the first few are kept to be shown."""
        self.rejected[reason] += 1
        if len(self.examples) < SHOWN_EXAMPLES:
            self.examples.append(f"record {self.num_read}: {reason}: {json.dumps(record, default=str)[:200]}")

    def check(self, kind: Kind, max_bad_share: float) -> None:
        """Raise InputError when more than `max_bad_share` of the records were bad."""
        num_bad = self.rejected.total()
        if num_bad <= max_bad_share * self.num_read:
            return
        reasons = "".join(f"\n  {count} x {reason}" for reason, count in self.rejected.most_common())
        examples = "".join(f"\n  {example}" for example in self.examples)
        raise InputError(
            f"{kind}: {num_bad} of {self.num_read} records are unusable, more than max_bad_share {max_bad_share:g} "
            f"allows:{reasons}\nThe first ones:{examples}\nMend the records, map other columns in {kind}.columns, "
            "or raise max_bad_share."
        )

    def report(self, kind: Kind) -> dict[str, Any]:
        """The counts under names that begin with the kind."""
        return {
            f"{kind}_read": self.num_read,
            f"{kind}_duplicates": self.num_duplicates,
            f"{kind}_rejected": dict(self.rejected.most_common()),
            f"{kind}_rejected_examples": self.examples,
        }
