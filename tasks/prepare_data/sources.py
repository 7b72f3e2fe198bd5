"""Raw records, one by one, from files through `datasets` or from a Python generator."""

import csv
import inspect
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tasks.callables import load_callable
from tasks.errors import InputError
from tasks.prepare_data.config import PYTHON_PREFIX, SourceConfig

READERS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}

Record = dict[str, Any]


def read_source(source: SourceConfig, path: Path | None, cache: Path) -> Iterator[Record]:
    """The records of a source: of the fetched file or folder `path`, or of its generator where `path` is None.

    `datasets` keeps its working copy under `cache`, from where records are read one by one.
    """
    if path is None:
        return _call_generator(source)
    return iter(_load(source, path, cache))


def _call_generator(source: SourceConfig) -> Iterator[Record]:
    generator = load_callable(source.path.removeprefix(PYTHON_PREFIX), "source")
    try:
        inspect.signature(generator).bind(**source.arguments)
    except TypeError as error:
        raise InputError(
            f"{source.path} does not take the arguments {source.arguments}: {error}. "
            f"Its signature is {inspect.signature(generator)}."
        ) from error
    for record in generator(**source.arguments):
        if not isinstance(record, dict):
            raise InputError(f"{source.path} yielded a {type(record).__name__}, expected a dict: {record!r:.200}")
        yield record


def _load(source: SourceConfig, path: Path, cache: Path) -> Iterable[Record]:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import datasets

    datasets.disable_progress_bars()
    options = _reader_options(path)
    try:
        if path.is_dir():
            split = source.split or "train"
            return datasets.load_dataset(str(path), name=source.subset, split=split, cache_dir=str(cache), **options)
        reader = READERS[path.suffix.lower()]
        return datasets.load_dataset(reader, data_files=str(path), split="train", cache_dir=str(cache), **options)
    except (ValueError, FileNotFoundError, datasets.exceptions.DatasetGenerationError) as error:
        raise InputError(f"{source.path} cannot be read: {error.__cause__ or error}") from error


def _reader_options(path: Path) -> dict[str, Any]:
    """Options of the reader for this file or folder: the cells of a CSV file are text, and 'NA' is a word."""
    if not path.exists():
        raise InputError(f"{path} does not exist. Give a file or folder of {', '.join(READERS)}.")
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    endings = Counter(file.suffix.lower() for file in files if file.suffix.lower() in READERS)
    if not endings:
        found = ", ".join(file.name for file in files[:5]) or "no files"
        raise InputError(f"{path} holds {found}; expected files ending in {', '.join(READERS)}.")
    if endings.most_common(1)[0][0] != ".csv":
        return {}
    import datasets

    first = next(file for file in files if file.suffix.lower() == ".csv")
    with first.open(newline="", encoding="utf-8-sig", errors="replace") as file:
        header = next(csv.reader(file), [])
    return {"features": datasets.Features(dict.fromkeys(header, datasets.Value("string"))), "keep_default_na": False}
