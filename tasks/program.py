"""The command line that every stage has: folders in, one folder out.

    python -m tasks.sft.train --config config.json --input data=DIR --input model=DIR --output DIR

A stage is this one contract; it knows neither Prefect nor S3.
"""

import argparse
import errno
import json
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from tasks.config import Config, Device
from tasks.errors import InputError
from tasks.lifeline import hold_lifeline

ERROR_FILE = "error.json"
REFUSED = 2
STOPPED = 128 + signal.SIGTERM
GPU_MEMORY = ("cuda out of memory", "cuda error: out of memory", "cublas_status_alloc_failed")
CPU_MEMORY = ("can't allocate memory", "cannot allocate memory", "bad_alloc")
LESS_MEMORY = "Lower the stage's batch size or token budget, or run it where there is more."

C = TypeVar("C", bound=Config)
Stage = Callable[[C, Mapping[str, Path], Path], None]


def run_program(stage: Stage[C], config_class: type[C], argv: Sequence[str] | None = None) -> None:
    """Run `stage(config, inputs, output)` as this process's whole work.

    An InputError, a refused config, a full disk or too little memory ends the process with status 2 and its
    message on stderr and in OUTPUT/error.json, where a launcher between us and the caller cannot lose it.
    Anything else is a bug and keeps its traceback.
    """
    hold_lifeline()
    arguments = _parse(argv)
    output = Path(arguments.output)
    output.mkdir(parents=True, exist_ok=True)
    (output / ERROR_FILE).unlink(missing_ok=True)
    try:
        config = load_config(config_class, Path(arguments.config))
        stage(config, _inputs(arguments.input), output)
    except InputError as error:
        _refuse(output, str(error))
    except Exception as error:
        if message := _full_disk(error, output):
            _refuse(output, message)
        if device := _out_of_memory(error):
            _refuse(output, f"The memory does not suffice ({_first_line(error)}). {LESS_MEMORY}", device)
        raise


def load_config(config_class: type[C], path: Path) -> C:
    """The stage's config from a JSON file; raises InputError naming each wrong field."""
    try:
        return config_class.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise InputError(f"--config {path} does not exist. Give the JSON file of the stage's options.") from error
    except IsADirectoryError as error:
        raise InputError(f"--config {path} is a folder. Give the JSON file of the stage's options.") from error
    except ValidationError as error:
        raise InputError(f"{path}:\n{explain(error)}") from error


@contextmanager
def sigterm_noted() -> Iterator[threading.Event]:
    """Inside, SIGTERM sets the event and interrupts nothing: a training step comes to its end and is kept."""
    event = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: event.set())
    try:
        yield event
    finally:
        signal.signal(signal.SIGTERM, before)


def explain(error: ValidationError) -> str:
    """One line for each refused field: where it stands, what came, what was expected."""
    return "\n".join(
        f"  {'.'.join(map(str, problem['loc'])) or 'config'}: {problem['msg']} (got {_shown(problem['input'])})"
        for problem in error.errors()
        if problem["type"] != "default_factory_not_called"  # only says that another field, listed too, is wrong
    )


def _shown(value: Any) -> str:
    """The start of what came, without the user name and password of an address."""
    return re.sub(r"://[^/@\s]*@", "://(hidden)@", repr(value))[:200]


def require(inputs: Mapping[str, Path], *names: str) -> None:
    """Raise InputError unless each named input was given and is a folder."""
    for name in names:
        if name not in inputs:
            raise InputError(f"--input {name}=DIR is missing; given: {', '.join(sorted(inputs)) or 'none'}.")
        if not inputs[name].is_dir():
            raise InputError(f"--input {name}={inputs[name]} is not a folder.")


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__)
    parser.add_argument("--config", required=True, help="JSON file of the stage's options")
    parser.add_argument("--input", action="append", default=[], metavar="NAME=DIR", help="an input folder; repeatable")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder to fill; checkpoints in it are resumed")
    return parser.parse_args(argv)


def _inputs(pairs: Sequence[str]) -> dict[str, Path]:
    inputs: dict[str, Path] = {}
    for pair in pairs:
        name, _, folder = pair.partition("=")
        if not name or not folder:
            raise InputError(f"--input {pair}: expected NAME=DIR.")
        if name in inputs:
            raise InputError(f"--input {name} is given twice: {inputs[name]} and {folder}. Give it once.")
        inputs[name] = Path(folder)
    return inputs


def _full_disk(error: Exception, output: Path) -> str | None:
    """What to do about `error` if it says that the disk is full, else None; safetensors says it in words only."""
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or os.strerror(errno.ENOSPC) in str(error):
        return f"The disk is full: {getattr(error, 'filename', None) or output}. Free space there and run again."
    return None


def _out_of_memory(error: Exception) -> Device | None:
    """The device whose memory does not suffice, if `error` says so; torch says it in several words."""
    text = str(error).lower()
    if type(error).__name__ == "OutOfMemoryError" or any(words in text for words in GPU_MEMORY):
        return "cuda"
    is_short = isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM
    return "cpu" if is_short or any(words in text for words in CPU_MEMORY) else None


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _refuse(output: Path, message: str, out_of_memory: Device | None = None) -> None:
    content = {"message": message} | ({"out_of_memory": out_of_memory} if out_of_memory else {})
    try:
        (output / ERROR_FILE).write_text(json.dumps(content))
    except OSError:
        print(f"(could not write {output / ERROR_FILE})", file=sys.stderr)
    print(f"error: {message}", file=sys.stderr)
    sys.exit(REFUSED)
