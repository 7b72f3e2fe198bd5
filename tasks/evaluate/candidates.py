"""The models that are compared, each asked everything that any of them is asked.

Letter: N prompts.
"""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from tasks.data import read_split
from tasks.errors import InputError
from tasks.evaluate.answers import Model, Rows, answer, kl_of, load_model, same_tokens, time_alone
from tasks.evaluate.comparison import Floats
from tasks.evaluate.config import EvaluateConfig
from tasks.evaluate.harness import harness_figures
from tasks.evaluate.judges import Questions, require_same_tokens
from tasks.evaluate.names import SIDES
from tasks.evaluate.perplexity import SFTRecords, perplexity
from tasks.generation import uniform_numbers
from tasks.models.model_files import require_kind
from tasks.models.modeling import load_tokenizer

OnBatch = Callable[[str, Rows], None]


@dataclass(frozen=True)
class Candidate:
    """What a model answered, and what was measured on it."""

    sampled: Rows
    greedy: Rows | None
    canaries: list[str]
    kl: Floats | None  # [N] nats, of the sampled responses; None where the model has other tokens than SFT
    perplexity: float | None
    harness: Mapping[str, float]
    speed: Mapping[str, float]


def choose_records(data: Path, num_prompts: int, seed: int) -> list[dict[str, Any]]:
    """At most `num_prompts` held-out prompts with their columns, in random order by the seed."""
    records = read_split(data, "prompts", "test")
    if not records:
        raise InputError(f"{data}/prompts_test.parquet holds no prompts. Give prepare_data more of them.")
    if len(records) < num_prompts:
        print(f"{num_prompts} prompts were asked for; all {len(records)} held-out ones are used.")
    return random.Random(seed).sample(records, min(num_prompts, len(records)))


def check_candidates(inputs: Mapping[str, Path], home: PreTrainedTokenizerBase) -> None:
    """Raise InputError for a candidate that is no language model, or a PPO model with other tokens than SFT."""
    for name in candidates_in(inputs):
        require_kind(inputs[name], "model")
    require_same_tokens(inputs["sft"], home, inputs["ppo"])
    for name in candidates_in(inputs):
        if not same_tokens(home, load_tokenizer(inputs[name])):
            print(f"{name} has another tokenizer than SFT: its answers are compared as texts, KL and tax not at all.")


def candidates_in(inputs: Mapping[str, Path]) -> list[str]:
    """The names of the candidates among the inputs, SFT first."""
    return [name for name in SIDES if name in inputs]


def num_batches(inputs: Mapping[str, Path], num_prompts: int, config: EvaluateConfig) -> int:
    """How many batches of prompts all candidates together answer."""
    folders = {inputs[name].resolve() for name in candidates_in(inputs)}
    return len(folders) * (1 + config.greedy) * -(-num_prompts // config.batch_size)


def ask_candidates(
    config: EvaluateConfig,
    inputs: Mapping[str, Path],
    questions: Questions,
    records: SFTRecords | None,
    on_batch: OnBatch = lambda *_: None,
) -> dict[str, Candidate]:
    """Every candidate's answers and measurements; one that stands in two places is asked once.

    SFT, to which the KL is measured, and one other model are in memory at a time.
    """
    home = load_tokenizer(inputs["sft"])
    reference = load_model(inputs["sft"], home, config.dtype)
    asked: dict[Path, Candidate] = {}
    for name in candidates_in(inputs):
        folder = inputs[name].resolve()
        if folder not in asked:
            model = reference if name == "sft" else load_model(folder, home, config.dtype)
            asked[folder] = _ask(name, model, reference, config, questions, records, on_batch)
    return {name: asked[inputs[name].resolve()] for name in candidates_in(inputs)}


def _ask(
    name: str,
    model: Model,
    reference: Model,
    config: EvaluateConfig,
    questions: Questions,
    records: SFTRecords | None,
    on_batch: OnBatch,
) -> Candidate:
    def heard(rows: Rows) -> None:
        on_batch(name, rows)

    uniforms = uniform_numbers(len(questions.records), config.sampling.response_length, "evaluate", config.seed)
    sampled = answer(model, questions.prompts, uniforms, config, heard)
    greedy = answer(model, questions.prompts, None, config, heard) if config.greedy else None
    speed = model.stopwatch.figures
    if config.num_timed:
        time_alone(model, questions.prompts[: config.num_timed], config)
        speed |= {"latency_s": model.stopwatch.figures["latency_s"]}
    return Candidate(
        sampled=sampled,
        greedy=greedy,
        canaries=answer(model, config.canaries, None, config).texts if config.canaries else [],
        kl=_kl(model, reference, questions, sampled, config),
        perplexity=None if records is None or not model.is_at_home else perplexity(model, records, config),
        harness={} if config.harness is None else harness_figures(config.harness, model),
        speed=speed,
    )


def _kl(model: Model, reference: Model, questions: Questions, sampled: Rows, config: EvaluateConfig) -> Floats | None:
    if not model.is_at_home:
        return None
    if model is reference:
        return np.zeros(len(questions.records))
    return kl_of(model, reference, questions.prompts, sampled, config).double().cpu().numpy()
