"""Ask both models the same prompts and have every judge mark the answers.

Letters: N prompts, R = the longest response allowed.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tasks.data import decode_response, encode_prompt, prompt_text, read_split
from tasks.episodes import join
from tasks.errors import InputError
from tasks.evaluate.comparison import SCORE, Answers, Comparison, Floats
from tasks.evaluate.config import EvaluateConfig
from tasks.evaluate.measures import kl_per_response
from tasks.generation import Responses, generate, response_logprobs, uniform_numbers
from tasks.model_files import require_kind
from tasks.modeling import ScalarModel, load_causal_lm, load_reward_model, load_tokenizer, stop_token_ids
from tasks.rewards.functions import RewardFunction, function_scores, load_reward_function
from tasks.rewards.models import model_scores
from tasks.rewards.sources import check_finite
from tasks.templates import with_stops

NO_COLUMNS = ("prompt", "source")  # of a record, that are not handed to metrics

Record = dict[str, Any]


@dataclass(frozen=True)
class Contest:
    """Two models that share a tokenizer, and the judges of their answers."""

    tokenizer: PreTrainedTokenizerBase
    sft: PreTrainedModel
    ppo: PreTrainedModel
    reward_model: ScalarModel | None
    metrics: Mapping[str, RewardFunction]


def choose_records(data: Path, num_prompts: int, seed: int) -> list[Record]:
    """At most `num_prompts` held-out prompts with their columns, in random order by the seed."""
    records = read_split(data, "prompts", "test")
    if not records:
        raise InputError(f"{data}/prompts_test.parquet holds no prompts. Give prepare_data more of them.")
    if len(records) < num_prompts:
        print(f"{num_prompts} prompts were asked for; all {len(records)} held-out ones are used.")
    return random.Random(seed).sample(records, min(num_prompts, len(records)))


def load_contest(config: EvaluateConfig, inputs: Mapping[str, Path]) -> Contest:
    """The models in `inputs` and the metrics of `config`; raises InputError before loading what does not fit."""
    judge = inputs.get("reward_model")
    if judge is None and not config.metrics:
        raise InputError("Nothing judges the answers. Give --input reward_model=DIR, or `metrics` in the config.")
    for name in ("sft", "ppo"):
        require_kind(inputs[name], "model")
    tokenizer = load_tokenizer(inputs["sft"])
    for folder in (inputs["ppo"], *([judge] if judge else [])):
        _require_same_tokenizer(inputs["sft"], tokenizer, folder, load_tokenizer(folder))
    metrics = {name: _load_metric(name, path) for name, path in config.metrics.items()}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return Contest(
        tokenizer=tokenizer,
        sft=load_causal_lm(inputs["sft"], config.dtype).to(device),
        ppo=load_causal_lm(inputs["ppo"], config.dtype).to(device),
        reward_model=load_reward_model(judge, inputs["sft"], config.dtype).to(device) if judge else None,
        metrics=metrics,
    )


def compare(contest: Contest, records: Sequence[Record], config: EvaluateConfig) -> Iterator[Comparison]:
    """The comparison of one batch of records after the other.

    Both models draw with the same random numbers, a row of them a prompt: equal models give equal answers, and
    neither the batch size nor a prompt's neighbours change an answer.
    """
    prompts = [encode_prompt(contest.tokenizer, record["prompt"], config.conversation_template) for record in records]
    _require_room(prompts, config.sampling.response_length, contest)
    uniforms = uniform_numbers(len(records), config.sampling.response_length, "evaluate", config.seed)
    for start in range(0, len(records), config.batch_size):
        rows = slice(start, start + config.batch_size)
        yield _compare_batch(contest, records[rows], prompts[rows], uniforms[rows], config)


def _compare_batch(
    contest: Contest,
    records: Sequence[Record],
    prompts: Sequence[Sequence[int]],
    uniforms: Tensor,
    config: EvaluateConfig,
) -> Comparison:
    """uniforms: [N, R]."""
    sampling, template_ids = with_stops(config.conversation_template, config.sampling, contest.tokenizer)
    model_ids = [stop for model in (contest.sft, contest.ppo) for stop in stop_token_ids(model, contest.tokenizer)]
    before, after = (
        generate(
            model,
            prompts,
            sampling,
            uniforms=uniforms,
            stop_ids=sorted({*template_ids, *model_ids}),
            tokenizer=contest.tokenizer,
            pad_token_id=contest.tokenizer.pad_token_id,
            rows_at_once=config.batch_size,
        )
        for model in (contest.sft, contest.ppo)
    )
    # Both by the same pass: what generation keeps differs by rounding, which bfloat16 makes visible in the KL.
    logprobs, ref_logprobs = (
        response_logprobs(model, prompts, after, config.sampling.temperature, config.token_budget)
        for model in (contest.ppo, contest.sft)
    )
    return Comparison(
        prompts=[prompt_text(record["prompt"]) for record in records],
        before=_judged(contest, records, prompts, before, config),
        after=_judged(contest, records, prompts, after, config),
        kl=_floats(kl_per_response(logprobs, ref_logprobs, after.mask)),
    )


def _judged(
    contest: Contest,
    records: Sequence[Record],
    prompts: Sequence[Sequence[int]],
    responses: Responses,
    config: EvaluateConfig,
) -> Answers:
    texts = [decode_response(contest.tokenizer, row, config.conversation_template) for row in responses.unpadded()]
    questions = [prompt_text(record["prompt"]) for record in records]
    columns = {name: [record[name] for record in records] for name in records[0] if name not in NO_COLUMNS}
    judgements: dict[str, Floats] = {}
    if contest.reward_model is not None:
        scores = model_scores(contest.reward_model, join(prompts, responses.ids, responses.mask), config.token_budget)
        check_finite(scores.tolist(), "the reward model")
        judgements[SCORE] = _floats(scores)
    for name, function in contest.metrics.items():
        judgements[name] = np.asarray(function_scores(function, questions, texts, columns), dtype=np.float64)
    ended = responses.ended.tolist()
    tokens = [row[:-1] if stopped else row for row, stopped in zip(responses.unpadded(), ended, strict=True)]
    return Answers(texts=texts, tokens=tokens, ended=ended, judgements=judgements)


def _load_metric(name: str, path: str) -> RewardFunction:
    try:
        return load_reward_function(path)
    except InputError as error:
        raise InputError(f"metrics.{name}: {error}") from error


def _require_same_tokenizer(
    folder: Path, tokenizer: PreTrainedTokenizerBase, other_folder: Path, other: PreTrainedTokenizerBase
) -> None:
    ids, other_ids = tokenizer.get_vocab(), other.get_vocab()
    if ids == other_ids and tokenizer.eos_token_id == other.eos_token_id:
        return
    differing = sorted(token for token in ids.keys() | other_ids.keys() if ids.get(token) != other_ids.get(token))
    raise InputError(
        f"The tokenizers in {folder} ({len(ids)} tokens, EOS {tokenizer.eos_token_id}) and {other_folder} "
        f"({len(other_ids)} tokens, EOS {other.eos_token_id}) differ"
        f"{f', first at {differing[0]!r}' if differing else ''}: "
        "answers can be compared only between models of one chain. Give models that share their tokenizer."
    )


def _require_room(prompts: Sequence[Sequence[int]], response_length: int, contest: Contest) -> None:
    for model in (contest.sft, contest.ppo):
        room = getattr(model.config, "max_position_embeddings", None)
        longest = max(len(prompt) for prompt in prompts)
        if room is not None and longest + response_length > room:
            raise InputError(
                f"The longest prompt has {longest} tokens; with sampling.response_length {response_length} that is "
                f"more than the model's {room} positions. Lower it, or leave long prompts out in prepare_data."
            )


def _floats(values: Tensor) -> Floats:
    return values.double().cpu().numpy()
