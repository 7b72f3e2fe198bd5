"""A Modelfile: with it Ollama writes a conversation as the tokenizer's chat template does, stops and samples alike.

Its format: https://docs.ollama.com/modelfile, its template Go's text/template.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import GenerationConfig, PreTrainedTokenizerBase

from tasks.errors import InputError
from tasks.export.turns import ASSISTANT, SYSTEM, USER, Turns, take_apart
from tasks.models.model_files import context_length

MODELFILE = "Modelfile"
FENCE = '"""'


def modelfile(
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    *,
    weights: str,
    sampling: Mapping[str, Any],
    stop_strings: Sequence[str],
) -> str:
    """The Modelfile of the model in `folder`; `weights` is its FROM, relative to the file.

    Raises InputError for a chat template that cannot be carried over.
    """
    turns = take_apart(tokenizer)
    lines = [f"FROM {weights}", f"TEMPLATE {FENCE}{go_template(turns, adds_bos(tokenizer))}{FENCE}"]
    lines += [f"SYSTEM {_quoted(turns.default_system)}"] if turns.default_system else []
    stops = dict.fromkeys([*_ends(folder, turns, tokenizer), *stop_strings])
    lines += [f"PARAMETER {name} {value}" for name, value in _parameters(folder, sampling).items()]
    lines += [f"PARAMETER stop {_quoted(stop)}" for stop in stops]
    return "\n".join(lines) + "\n"


def go_template(turns: Turns, bos_is_added: bool) -> str:
    """The turns in Go's text/template over Ollama's .Messages; an answer that was begun already is gone on with."""
    start = "" if bos_is_added else _literal(turns.start)

    def turn(role: str) -> str:
        before, after = turns.around[role]
        end = f"{{{{ if not $last }}}}{_literal(after)}{{{{ end }}}}" if role == ASSISTANT else _literal(after)
        return f"{_literal(before)}{{{{ .Content }}}}{end}"

    roles = [role for role in (SYSTEM, ASSISTANT, USER) if role in turns.around]
    branches = "".join(
        f'{{{{ {"else " if number else ""}if eq .Role "{role}" }}}}{turn(role)}' for number, role in enumerate(roles)
    )
    return (
        f"{start}{{{{ range $i, $_ := .Messages }}}}{{{{ $last := eq (len (slice $.Messages $i)) 1 }}}}"
        f"{branches}{{{{ end }}}}"
        f'{{{{ if and $last (ne .Role "{ASSISTANT}") }}}}{_literal(turns.answer)}{{{{ end }}}}{{{{ end }}}}'
    )


def adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer puts BOS before every text by itself: then Ollama does, and the template must not."""
    return tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]


def _literal(text: str) -> str:
    """Text as it stands between Go's actions."""
    return f"{{{{ {json.dumps(text, ensure_ascii=False)} }}}}" if "{{" in text or FENCE in text else text


def _parameters(folder: Path, sampling: Mapping[str, Any]) -> dict[str, Any]:
    """Ollama's own defaults would sample otherwise than the evaluation did."""
    longest = context_length(folder)
    size = {"num_ctx": longest} if longest else {}
    if not sampling:
        return size
    return {
        **size,
        "temperature": sampling["temperature"],
        "top_k": sampling["top_k"],
        "top_p": sampling["top_p"],
        "min_p": 0.0,
        "repeat_penalty": 1.0,
        "num_predict": sampling["response_length"],
    }


def _ends(folder: Path, turns: Turns, tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """What ends an answer: the tokens of the generation config, and what the template writes after one."""
    configured = GenerationConfig.from_pretrained(folder, local_files_only=True).eos_token_id
    ids = [configured] if isinstance(configured, int) else configured or []
    yield from tokenizer.convert_ids_to_tokens(ids)
    after = turns.around[ASSISTANT][1].strip()
    if after:
        yield after


def _quoted(text: str) -> str:
    if FENCE in text:
        raise InputError(
            f"A Modelfile cannot hold {text!r:.100}: three quotes end a text there. Leave `modelfile` out."
        )
    return f"{FENCE}{text}{FENCE}" if '"' in text or "\n" in text else f'"{text}"'
