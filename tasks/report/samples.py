"""Prompts with the models' answers side by side; a canary's as changes of the SFT model's."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tasks.evaluate.names import LABELS
from tasks.report.facts import CANARIES, SAMPLES, StageFacts
from tasks.word_diff import Change, word_changes

COLOURS = {"base": 6, "before": 6, "champion": 2, "after": 1}
NUM_SAMPLES = 8


@dataclass(frozen=True)
class Answer:
    """What one model said, with the judges' marks."""

    label: str
    colour: int
    marks: str
    changes: Sequence[Change]


@dataclass(frozen=True)
class Sample:
    """A prompt, and the answers to it."""

    prompt: str
    answers: Sequence[Answer]


@dataclass(frozen=True)
class Group:
    """Samples of one sort, as a section of the page."""

    anchor: str
    title: str
    hint: str
    marks_changes: bool
    samples: Sequence[Sample]


def sample_groups(evaluation: StageFacts) -> list[Group]:
    """The canaries, and samples drawn at random; those that there are."""
    judges = evaluation.report.get("judges", [])
    drawn = evaluation.json(SAMPLES, evaluation.report.get("samples", []))[:NUM_SAMPLES]
    groups = [
        Group(
            "canaries",
            "Canaries",
            "The same prompts in every run, answered greedily.",
            True,
            [_sample(row, (), marks_changes=True) for row in evaluation.json(CANARIES, [])],
        ),
        Group(
            "samples",
            "Samples",
            "Held-out prompts, chosen by the seed and answered with the same random numbers; with each judge's mark.",
            False,
            [_sample(row, judges, marks_changes=False) for row in drawn],
        ),
    ]
    return [group for group in groups if group.samples]


def _sample(row: Mapping[str, Any], judges: Sequence[str], marks_changes: bool) -> Sample:
    before = row["before"].strip()
    answers = []
    for side, label in LABELS.items():
        if side in row:
            text = row[side].strip()
            marks = ", ".join(f"{judge.replace('_', ' ')} {row[f'{judge}_{side}']:.2f}" for judge in judges)
            is_changed = marks_changes and side in ("champion", "after")
            changes = word_changes(before, text) if is_changed else [Change(kept=text)] if text else []
            answers.append(Answer(label, COLOURS[side], marks, changes))
    return Sample(row["prompt"].strip(), answers)
