"""Export any model by hand, in the forms of your choice.

    python -m tasks.export MODEL --output DIR --dtype bfloat16 --max-shard-size 2GB --prompt "How are you?"
    python -m tasks.export MODEL --output DIR --adapter ADAPTER BASE --config options.json

MODEL, ADAPTER and BASE are folders, hub names or addresses of artifacts. DIR must not hold anything; it appears whole,
when every form was loaded and compared with MODEL, or not at all. The options in --config are those of the stage
(tasks/export/config.py), and --input gives its inputs that the card tells of, such as evaluation=FOLDER.
"""

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tasks.errors import InputError
from tasks.export.config import ExportConfig
from tasks.export.hub import push
from tasks.export.run import export
from tasks.models.model_files import write_json
from tasks.program import REFUSED, explain, load_config


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status: 0 when the export is in the output folder, 2 when it was refused."""
    arguments = _parse(argv)
    try:
        _export(arguments)
    except InputError as error:
        print(f"refused: {error}", file=sys.stderr)
        return REFUSED
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tasks.export", description="Export a model by hand.")
    parser.add_argument("model", help="folder, hub name or address of an artifact")
    parser.add_argument("--output", type=Path, required=True, help="folder to make; must not hold anything")
    parser.add_argument("--name", help="title of the model card")
    parser.add_argument("--dtype", help="as_is, float32, bfloat16 or float16")
    parser.add_argument("--max-shard-size", help="such as 500MB or 5GB")
    parser.add_argument("--license", help="the hub's identifier, such as apache-2.0")
    parser.add_argument("--prompt", action="append", dest="prompts", help="asked of every form; repeatable")
    parser.add_argument("--adapter", nargs=2, metavar=("ADAPTER", "BASE"), help="also the adapter alone, on BASE")
    parser.add_argument("--quantized", action="append", metavar="int8|int4", help="also in so few bits; repeatable")
    parser.add_argument("--modelfile", action="store_true", help="also a Modelfile for Ollama")
    parser.add_argument("--push", metavar="ORG/NAME", help="then push it to this repository of the hub, with $HF_TOKEN")
    parser.add_argument("--input", action="append", default=[], metavar="NAME=WHAT", help="for the card; repeatable")
    parser.add_argument("--config", type=Path, help="JSON file of the stage's options")
    return parser.parse_args(argv)


def _export(arguments: argparse.Namespace) -> None:
    output: Path = arguments.output.absolute()
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"--output {output} exists and is not an empty folder. Name another.")
    sources = _sources(arguments)
    config = _config(arguments)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        inputs = _fetched(sources, Path(scratch))
        aside = Path(tempfile.mkdtemp(dir=output.parent, prefix=f".{output.name}-"))
        try:
            proof = export(config, inputs, aside)
            aside.chmod(0o777 & ~_umask())
            os.rename(aside, output)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    print(f"the export is in {output}; its card: {output / 'README.md'}")
    if config.hub is not None:
        print(f"pushed to {push(config.hub, output, proof.exam, proof.tolerance).url}")


def _sources(arguments: argparse.Namespace) -> dict[str, str]:
    """What to fetch, by the name of the input."""
    sources = {"model": arguments.model}
    if arguments.adapter:
        sources |= dict(zip(("adapter", "adapter_base"), arguments.adapter, strict=True))
    for pair in arguments.input:
        name, _, what = pair.partition("=")
        if not name or not what or name in sources:
            raise InputError(f"--input {pair}: expected NAME=WHAT, each name once.")
        sources[name] = what
    return sources


def _config(arguments: argparse.Namespace) -> ExportConfig:
    config = ExportConfig() if arguments.config is None else load_config(ExportConfig, arguments.config)
    options = config.model_dump()
    names = ("name", "dtype", "max_shard_size", "license", "prompts", "quantized")
    options |= {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    if arguments.adapter and config.adapter is None:
        options["adapter"] = {}
    if arguments.push:
        options["hub"] = {**(options["hub"] or {}), "repository": arguments.push}
    options["modelfile"] |= arguments.modelfile
    try:
        return ExportConfig.model_validate(options)
    except ValidationError as error:
        raise InputError(f"the options:\n{explain(error)}") from error


def _fetched(sources: Mapping[str, str], scratch: Path) -> dict[str, Path]:
    """The folder of each source, and of what is known of them; what is not on this machine is made in `scratch`."""
    from tasks.artifacts import fetch, import_external, lineage_of, store_at  # the stage itself knows no artifacts

    inputs: dict[str, Path] = {}
    lineage: dict[str, Any] = {}
    for name, source in sources.items():
        artifact = import_external(source)
        store = store_at(source.partition("/artifacts/")[0] if "/artifacts/" in source else f"file://{scratch}")
        inputs[name], lineage[name] = fetch(store, artifact, scratch / "fetched"), lineage_of(store, artifact)
    write_json(scratch / "lineage" / "lineage.json", lineage)
    return {**inputs, "lineage": scratch / "lineage"}


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


if __name__ == "__main__":
    sys.exit(main())
