"""What the inputs of an export tell of themselves: the evaluation, reports, lineage, files of the data."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tasks.data import Text
from tasks.errors import InputError
from tasks.models.model_files import read_json

NUM_COMPARED = 3
ABOUT = ("lineage", "base", "adapter", "adapter_base")  # inputs that are no stage's result on the card


@dataclass(frozen=True)
class Evaluation:
    """What the export needs of the `evaluation` artifact; all empty where there is none."""

    results: str = ""  # report.md
    sampling: Mapping[str, Any] = field(default_factory=dict)
    conversational: bool = False
    questions: list[Text] = field(default_factory=list)  # of the first samples: every form is tried on them
    answers: list[str] = field(default_factory=list)
    stop_strings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Parent:
    """What is known of an input: its report.json, and where it came from (uri, digest, config); each may be empty."""

    report: Mapping[str, Any]
    lineage: Mapping[str, Any]


def read_evaluation(inputs: Mapping[str, Path]) -> Evaluation:
    """The input `evaluation`, where it was given; raises InputError if a part of it is missing."""
    if "evaluation" not in inputs:
        return Evaluation()
    folder = inputs["evaluation"]
    content = read_json(folder / "evaluation.json")
    if not (folder / "report.md").is_file() or not (folder / "samples.json").is_file():
        raise InputError(
            f"{folder}: expected what evaluate writes; report.md or samples.json is missing. Run it again."
        )
    samples = json.loads((folder / "samples.json").read_text())[:NUM_COMPARED]
    prompts = [sample["prompt"] for sample in samples]
    conversational = bool(content["conversational"])
    template = content["config"].get("conversation_template") or {}
    stops = [*content["config"]["sampling"].get("stop_strings", []), *template.get("stop_strings", [])]
    return Evaluation(
        results=(folder / "report.md").read_text(),
        sampling=content["config"]["sampling"],
        conversational=conversational,
        questions=[[{"role": "user", "content": prompt}] if conversational else prompt for prompt in prompts],
        answers=[sample["after"] for sample in samples],
        stop_strings=stops + ([template["end_of_assistant"]] if template.get("end_of_assistant") else []),
    )


def read_parents(inputs: Mapping[str, Path]) -> dict[str, Parent]:
    """What each input tells of itself in its report.json, and what the input `lineage`, where given, tells of it."""
    lineage = read_lineage(inputs)
    return {
        name: Parent(_json_in(folder, "report.json"), lineage.get(name, {}))
        for name, folder in inputs.items()
        if name not in ABOUT
    }


def read_lineage(inputs: Mapping[str, Path]) -> dict[str, Any]:
    """Address, digest, stage and config of each input, by its name; empty where the input `lineage` was not given."""
    return _json_in(inputs["lineage"], "lineage.json") if "lineage" in inputs else {}


def read_tree(inputs: Mapping[str, Path]) -> str:
    """What the inputs were made of, as lines of text; empty where the input `lineage` was not given."""
    tree = inputs["lineage"] / "tree.txt" if "lineage" in inputs else None
    return tree.read_text() if tree is not None and tree.is_file() else ""


def _json_in(folder: Path, name: str) -> dict[str, Any]:
    return read_json(folder / name) if (folder / name).is_file() else {}
