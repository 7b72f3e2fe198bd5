"""Compare any two models on the prompts of a file, by hand.

    python -m tasks.evaluate --models A B --prompts FILE --judge NAME=package.module:function --output DIR
    python -m tasks.evaluate --models A B --prompts FILE --judge reward_model=C --config options.json --output DIR

A, B and C are folders, hub names or addresses of artifacts. A stands where SFT stands in the chain: KL and win rate are
B's over A. FILE holds a prompt a line, or a JSON list, or JSON lines with `prompt` and the columns that a judge wants.
The options in --config are those of the stage (tasks/evaluate/config.py), such as llm_judge.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from tasks.errors import InputError
from tasks.evaluate.config import EvaluateConfig
from tasks.evaluate.judges import REWARD_MODELS
from tasks.evaluate.names import LABELS
from tasks.evaluate.prompt_files import read_prompt_file
from tasks.evaluate.run import main as evaluate
from tasks.program import REFUSED, explain, load_config


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status: 0 when the comparison is in the output folder, 2 when the input was refused."""
    arguments = _parse(argv)
    try:
        _compare(arguments)
    except InputError as error:
        print(f"refused: {error}", file=sys.stderr)
        return REFUSED
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tasks.evaluate", description="Compare two models by hand.")
    parser.add_argument("--models", nargs=2, required=True, metavar=("A", "B"), help="win rate and KL are B's over A")
    parser.add_argument("--prompts", type=Path, required=True, help="text, .json or .jsonl")
    parser.add_argument(
        "--judge",
        action="append",
        default=[],
        metavar="NAME=WHAT",
        help="reward_model=MODEL, second_reward_model=MODEL, or NAME=package.module:function; repeatable",
    )
    parser.add_argument("--config", type=Path, help="JSON file of the stage's options")
    parser.add_argument("--output", type=Path, required=True, help="folder to fill")
    return parser.parse_args(argv)


def _compare(arguments: argparse.Namespace) -> None:
    judges = _judges(arguments.judge)
    config = _config(arguments.config, {name: what for name, what in judges.items() if name not in _inputs()})
    labels = LABELS | dict(zip(("before", "after"), _labels(*arguments.models), strict=True))
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        sources = dict(zip(("sft", "ppo"), arguments.models, strict=True))
        sources |= {name: what for name, what in judges.items() if name in _inputs()}
        inputs = {name: _fetched(source, scratch / "models") for name, source in sources.items()}
        inputs["data"] = _data(arguments.prompts, scratch / "data")
        arguments.output.mkdir(parents=True, exist_ok=True)
        evaluate(config, inputs, arguments.output, labels)
    print(f"the page to read: {arguments.output / 'report.md'}")


def _inputs() -> list[str]:
    return list(REWARD_MODELS.values())


def _judges(pairs: Sequence[str]) -> dict[str, str]:
    judges = dict(pair.partition("=")[::2] for pair in pairs)
    for name, what in judges.items():
        if not name or not what:
            raise InputError(f"--judge {name}: expected NAME=package.module:function or reward_model=MODEL.")
    return judges


def _config(path: Path | None, metrics: dict[str, str]) -> EvaluateConfig:
    config = EvaluateConfig() if path is None else load_config(EvaluateConfig, path)
    options = config.model_dump() | {"metrics": config.metrics | metrics}
    try:
        return EvaluateConfig.model_validate(options)
    except ValidationError as error:
        raise InputError(f"--judge:\n{explain(error)}") from error


def _labels(first: str, second: str) -> tuple[str, str]:
    names = [Path(source.rstrip("/")).name for source in (first, second)]
    return (names[0], names[1]) if names[0] != names[1] else (f"{names[0]} (A)", f"{names[1]} (B)")


def _fetched(source: str, cache: Path) -> Path:
    """The folder of a model, which for what is not on this machine is made in `cache`."""
    from tasks.artifacts import fetch, import_external, store_at  # the stage itself knows no artifacts

    artifact = import_external(source)
    store = source.partition("/artifacts/")[0] if "/artifacts/" in source else f"file://{cache.absolute()}"
    return fetch(store_at(store), artifact, cache)


def _data(prompts: Path, folder: Path) -> Path:
    """A data folder of which these are the held-out prompts."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        records = read_prompt_file(prompts)
    except ValueError as error:
        raise InputError(f"--prompts: {error}.") from error
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(records), folder / "prompts_test.parquet")
    return folder


if __name__ == "__main__":
    sys.exit(main())
