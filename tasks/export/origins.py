"""Base model, data sets and their licences, as far as anything says; what nothing says is unknown, and said to be."""

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard

from tasks.errors import InputError
from tasks.export.config import HUB_LICENSE, ExportConfig

UNKNOWN = "unknown"
HUB_MODEL = re.compile(r"hf://(?P<name>[\w.-]+/[\w.-]+)@(?P<commit>\w+)")
HUB_DATA = re.compile(r"hf://(?P<name>[\w.-]+/[\w.-]+)(@.*)?")


@dataclass(frozen=True)
class DataFile:
    """A file of the prepared data."""

    name: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Origins:
    """Where a model comes from, for its card."""

    base_model: str | None  # hub name
    license: str  # hub identifier
    license_source: str  # who says so
    data_license: str  # in words
    datasets: tuple[str, ...] = ()  # hub names
    data_files: tuple[DataFile, ...] = ()


def read_origins(config: ExportConfig, inputs: Mapping[str, Path], lineage: Mapping[str, Any]) -> Origins:
    """What the config says, else the base's card and the lineage."""
    license, source = _license(config, inputs)
    base = HUB_MODEL.fullmatch(lineage.get("base", {}).get("uri", ""))
    return Origins(
        base_model=config.base_model or (base["name"] if base else None),
        license=license,
        license_source=source,
        data_license=config.data_license or UNKNOWN,
        datasets=tuple(dict.fromkeys(_hub_data(lineage.get("data", {}).get("config", {})))),
        data_files=_files_of(inputs["data"]) if "data" in inputs else (),
    )


def _license(config: ExportConfig, inputs: Mapping[str, Path]) -> tuple[str, str]:
    """The model's licence, and where it is said."""
    if config.license is not None:
        return config.license, "export.license"
    for name in ("base", "model"):
        if name in inputs and (license := _license_on_card(inputs[name] / "README.md")):
            return license, f"the card of the {'base model' if name == 'base' else 'model before export'}"
    return UNKNOWN, "neither export.license nor a card of the base model names one"


def _license_on_card(card: Path) -> str | None:
    if not card.is_file():
        return None
    try:
        license = ModelCard(card.read_text(), ignore_metadata_errors=True).data.get("license")
    except (ValueError, yaml.YAMLError) as error:
        raise InputError(
            f"{card}: its front matter cannot be read ({error}). Mend it, or set export.license."
        ) from error
    known = isinstance(license, str) and HUB_LICENSE.fullmatch(license) and license != UNKNOWN
    return license if known else None


def _hub_data(options: Any) -> Iterator[str]:
    """The hub's data sets among the options of prepare_data, at whatever depth a path stands."""
    if isinstance(options, Mapping):
        match = HUB_DATA.fullmatch(options["path"]) if isinstance(options.get("path"), str) else None
        if match:
            yield match["name"]
        for value in options.values():
            yield from _hub_data(value)
    elif isinstance(options, list):
        for value in options:
            yield from _hub_data(value)


def _files_of(folder: Path) -> tuple[DataFile, ...]:
    return tuple(DataFile(path.name, path.stat().st_size, _sha256(path)) for path in sorted(folder.glob("*.parquet")))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
