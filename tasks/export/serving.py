"""How vLLM serves the model: one command, as a script beside the weights."""

import re
import shlex
from pathlib import Path

from tasks.models.model_files import context_length

SERVE = "serve.sh"


def served_name(name: str) -> str:
    """The name that clients give as `model`, made of the card's title."""
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-.") or "model"


def serve_command(folder: Path, where: str, dtype: str, name: str) -> str:
    """`vllm serve` of the model that lies at `where` (as a shell writes it), with the files of `folder`."""
    words = ["--served-model-name", served_name(name), "--dtype", dtype]
    longest = context_length(folder)
    words += ["--max-model-len", str(longest)] if longest else []
    return f"vllm serve {where} {shlex.join(words)}"


def serve_script(folder: Path, dtype: str, name: str) -> str:
    """A script that serves the folder in which it lies."""
    command = serve_command(folder, '"$(dirname "$0")"', dtype, name)
    about = f"# An OpenAI-compatible server of this model: sh {SERVE} [more options of vllm]"
    return f'#!/bin/sh\n{about}\nexec {command} "$@"\n'
