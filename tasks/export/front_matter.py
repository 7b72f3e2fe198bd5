"""The YAML block at the head of a model card that the hub reads, and what has to be true of it."""

from collections.abc import Mapping
from typing import Any

import yaml
from huggingface_hub import ModelCard
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from tasks.errors import InputError
from tasks.export.config import HUB_LICENSE, ExportConfig
from tasks.export.origins import Origins

TEXTS = ("library_name", "pipeline_tag", "license")
LISTS = ("tags", "language", "datasets")
REQUIRED = ("library_name", "pipeline_tag", "license", "tags")


def front_matter(config: ExportConfig, origins: Origins) -> str:
    """The block; but for the licence, what is not known is left out."""
    fields: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["rlhf", "ppo", "reinforcement-learning"],
        "base_model": origins.base_model,
        "license": origins.license,
        "datasets": list(origins.datasets),
        "language": config.language,
    }
    known = {name: value for name, value in fields.items() if value}
    return f"---\n{yaml.safe_dump(known, sort_keys=False, allow_unicode=True)}---"


def check_card(card: str) -> None:
    """Raise InputError, naming the field, for a card that the hub would refuse or misread."""
    try:
        fields = ModelCard(card).data.to_dict()
    except (ValueError, yaml.YAMLError) as error:
        raise InputError(f"The model card's front matter cannot be read: {error}") from error
    faults = [f"{name} is missing" for name in REQUIRED if name not in fields]
    faults += [f"{name} must be a text" for name in TEXTS if not isinstance(fields.get(name, ""), str)]
    faults += [f"{name} must be a list of texts" for name in LISTS if not _is_list(fields.get(name, []))]
    faults += _faults_of_names(fields)
    if not HUB_LICENSE.fullmatch(str(fields.get("license"))):
        faults.append(f"license {fields.get('license')!r} is no identifier of the hub's")
    if faults:
        raise InputError(f"The model card's front matter would be refused by the hub: {'; '.join(faults)}.")


def _is_list(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _faults_of_names(fields: Mapping[str, Any]) -> list[str]:
    """What is wrong with the names of the base model and the data sets: the hub wants its own names."""
    faults = []
    named = [("base_model", fields["base_model"])] if "base_model" in fields else []
    for field, name in [*named, *(("datasets", name) for name in fields.get("datasets", []))]:
        try:
            validate_repo_id(name)
        except HFValidationError as error:
            faults.append(f"{field} {name!r} is no name on the hub ({error})")
    return faults
