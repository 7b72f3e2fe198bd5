"""How a model can be made again: the commit, the libraries, the seeds, and a pipelines file that `infra.run` takes."""

import platform
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from tasks.export.config import ExportConfig
from tasks.gate import GateConfig

REPRODUCE = "reproduce.yaml"
NAME = "reproduce"
COMMAND = f"python -m infra.run {NAME} --file {REPRODUCE}"
LIBRARIES = ("accelerate", "datasets", "peft", "safetensors", "tokenizers", "torch", "transformers", "trl")
GROUPS = {
    "data": "prepare_data",
    "sft": "sft",
    "reward_model": "reward_model",
    "second_reward_model": "second_reward_model",
    "certificate": "certify",
    "ppo": "ppo",
    "evaluation": "evaluate",
}  # of the pipeline, by the name of the input that was made with it
REPLACEABLE = ("prepare_data", "sft", "reward_model", "second_reward_model", "ppo")
OPTIONAL = {"reward_model": "reward_model", "certificate": "certify"}  # groups that are None where nothing was made
_PROJECT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Reproduction:
    """What it takes to make the model again."""

    commit: str | None  # None: the program does not run from a git checkout
    versions: Mapping[str, str]
    seeds: Mapping[str, int]  # by dotted name of the option
    pipeline: Mapping[str, Any]  # empty where the lineage is not known

    def entry(self) -> str:
        """The pipelines file."""
        deployment = {
            "name": NAME,
            "entrypoint": "flows/alignment.py:alignment",
            "tags": ["alignment"],
            "work_pool": {"name": "alignment"},
            "parameters": {"pipeline": dict(self.pipeline)},
        }
        return yaml.safe_dump({"name": "alignment", "deployments": [deployment]}, sort_keys=False, allow_unicode=True)


def read_reproduction(config: ExportConfig, lineage: Mapping[str, Any]) -> Reproduction:
    """What the lineage of the inputs and this installation tell."""
    pipeline = _pipeline(config, lineage)
    made_with = lineage.get("model", {}).get("libraries", {})
    versions = {"python": platform.python_version()} | {name: version(name) for name in LIBRARIES} | made_with
    return Reproduction(commit_of(_PROJECT), versions, dict(_seeds(pipeline)), pipeline)


def commit_of(folder: Path) -> str | None:
    """The commit that is checked out in `folder`, with a word if files differ from it; None if git knows none."""
    commit, changes = _git(folder, "rev-parse", "HEAD"), _git(folder, "status", "--porcelain", "--untracked-files=no")
    return f"{commit} with changes that are not committed" if commit and changes else commit


def _pipeline(config: ExportConfig, lineage: Mapping[str, Any]) -> dict[str, Any]:
    """The chain's options, as the manifests of what it made tell them; its gate is open."""
    if "config" not in lineage.get("data", {}):
        return {}
    groups: dict[str, Any] = {}
    existing: dict[str, str] = {}
    for name, group in GROUPS.items():
        known = lineage.get(name, {})
        if "config" in known:
            groups[group] = known["config"]
        elif known and group in REPLACEABLE:
            existing[group] = known["uri"]
    groups |= {group: None for name, group in OPTIONAL.items() if name not in lineage}
    model = lineage.get("model", {})
    if model.get("stage") in ("remove_value_head", "merge_lora"):
        groups[model["stage"]] = model["config"]
    base = {"model": lineage["base"]["uri"]} if "base" in lineage else {}
    closed = {name: None for name, field in GateConfig.model_fields.items() if field.annotation == float | None}
    return base | groups | {"gate": closed, "export": config.model_dump(mode="json"), "existing": existing}


def _seeds(options: Any, prefix: str = "") -> Iterator[tuple[str, int]]:
    if isinstance(options, Mapping):
        for name, value in options.items():
            if name == "seed" and isinstance(value, int):
                yield f"{prefix}seed", value
            else:
                yield from _seeds(value, f"{prefix}{name}.")


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
