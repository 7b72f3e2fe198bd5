"""What became of a source's records: how many were read, used, repeated, unusable and why."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tasks.errors import InputError
from tasks.prepare_data.config import Kind, SourceConfig
from tasks.prepare_data.records import BadRecord, Record

SHOWN_EXAMPLES = 5


@dataclass
class Tally:
    """Counts of one source's records, filled while they are read."""

    num_read: int = 0
    num_duplicates: int = 0
    num_answered: int = 0  # whose prompt ends with an assistant message, where prompts are lent to PPO
    rejected: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)
    conversational: bool | None = None  # of the kind's good records; None before the first

    @classmethod
    def joined(cls, tallies: Sequence["Tally"]) -> "Tally":
        """The counts of several sources together, with the first examples."""
        return cls(
            num_read=sum(tally.num_read for tally in tallies),
            num_duplicates=sum(tally.num_duplicates for tally in tallies),
            num_answered=sum(tally.num_answered for tally in tallies),
            rejected=sum((tally.rejected for tally in tallies), Counter()),
            examples=[example for tally in tallies for example in tally.examples][:SHOWN_EXAMPLES],
        )

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

    def check(self, kind: Kind, source: SourceConfig, max_bad_share: float) -> None:
        """Raise InputError when more than `max_bad_share` of the records were bad."""
        num_bad = self.rejected.total()
        if num_bad <= max_bad_share * self.num_read:
            return
        reasons = "".join(f"\n  {count} x {reason}" for reason, count in self.rejected.most_common())
        examples = "".join(f"\n  {example}" for example in self.examples)
        raise InputError(
            f"{kind} from {source.path}: {num_bad} of {self.num_read} records are unusable, more than max_bad_share "
            f"{max_bad_share:g} allows:{reasons}\nThe first ones:{examples}\nMend the records, map other columns in "
            f"{kind}.columns, or raise max_bad_share."
        )

    def report(self, kind: Kind) -> dict[str, Any]:
        """The counts under names that begin with the kind."""
        answered = {f"{kind}_answered_prompts_not_lent": self.num_answered} if self.num_answered else {}
        return {
            f"{kind}_read": self.num_read,
            f"{kind}_duplicates": self.num_duplicates,
            f"{kind}_rejected": dict(self.rejected.most_common()),
            f"{kind}_rejected_examples": self.examples,
            **answered,
        }
