"""Records from anywhere in one form: cleaned, without duplicates, split into train and test, as Parquet.

python -m tasks.prepare_data.run --config config.json --input sft=FILE --input preferences=FILE --output DIR
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tasks.errors import InputError
from tasks.prepare_data.config import PrepareDataConfig
from tasks.prepare_data.preparation import CACHE_FOLDER, Preparation
from tasks.program import run_program


def main(config: PrepareDataConfig, inputs: Mapping[str, Path], output: Path) -> None:
    """Fill `output` with a `data` artifact: KIND_train.parquet and KIND_test.parquet of every kind, and report.json."""
    for name, path in config.sources().items():
        if name not in inputs:
            raise InputError(f"--input {name}=PATH is missing: give the local file or folder of {path}.")
    report: dict[str, Any] = {}
    try:
        for kind in config.given():
            report |= Preparation(kind, config, inputs, output).run()
    finally:
        shutil.rmtree(output / CACHE_FOLDER, ignore_errors=True)
    (output / "report.json").write_text(json.dumps(report, indent=2, ensure_ascii=False))
    for name, value in report.items():
        if name.endswith("_records"):
            print(f"{name}: {value}")


if __name__ == "__main__":
    run_program(main, PrepareDataConfig)
