"""How well a model still predicts held-out SFT records: what PPO costs there is the alignment tax."""

import math
import random
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from tasks.data import pad_right, read_split
from tasks.episodes import join, logprobs_of, measure_tokens
from tasks.evaluate.answers import Model
from tasks.evaluate.config import EvaluateConfig
from tasks.examples import encode_pair
from tasks.models.model_files import context_length

SPLIT = "sft_test.parquet"


@dataclass(frozen=True)
class SFTRecords:
    """Token ids of prompt and completion of each record."""

    prompts: list[list[int]]
    completions: list[list[int]]


def read_sft_records(config: EvaluateConfig, data: Path, sft: Path, home: PreTrainedTokenizerBase) -> SFTRecords | None:
    """The held-out SFT records that the seed chooses, cut at the SFT model's context; None where there are none."""
    if not config.num_sft_records or not (data / SPLIT).is_file():
        return None
    records = read_split(data, "sft", "test")
    chosen = random.Random(config.seed).sample(records, min(config.num_sft_records, len(records)))
    pairs = [
        encode_pair(home, record["prompt"], record["completion"], config.conversation_template) for record in chosen
    ]
    room = context_length(sft)
    cut = [
        (prompt, completion if room is None else completion[: max(0, room - len(prompt))])
        for prompt, completion in pairs
    ]
    kept = [(prompt, completion) for prompt, completion in cut if prompt and completion]
    return SFTRecords([prompt for prompt, _ in kept], [completion for _, completion in kept]) if kept else None


def perplexity(model: Model, records: SFTRecords, config: EvaluateConfig) -> float:
    """exp of the mean negative log-likelihood of the completions' tokens, as SFT counts them: <unk> is left out."""
    ids, mask = pad_right(records.completions, 0)
    episodes = join(records.prompts, ids, mask).each(lambda tensor: tensor.to(model.lm.device))
    logprobs = measure_tokens(lambda part: logprobs_of(model.lm, part, 1.0), episodes, config.token_budget).cpu()
    unknown = model.home.unk_token_id
    if unknown is not None and unknown != model.home.eos_token_id:
        mask = mask & (ids != unknown)
    return math.exp(-float(logprobs.double()[mask].mean()))
