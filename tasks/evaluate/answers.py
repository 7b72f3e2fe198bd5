"""Ask a model the prompts, and read its responses in the tokens of the SFT model.

Letters: N prompts, R = the longest response allowed.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tasks.data import Text, decode_response, encode_prompt, pad_right
from tasks.episodes import Episodes, join, logprobs_of, measure_tokens
from tasks.errors import InputError
from tasks.evaluate.config import EvaluateConfig
from tasks.evaluate.measures import kl_per_response
from tasks.generation import Responses, generate
from tasks.models.modeling import load_causal_lm, load_tokenizer, reads_same_tokens, stop_token_ids
from tasks.templates import with_stops


@dataclass(frozen=True)
class Rows:
    """A response to each prompt, in SFT's tokens."""

    texts: list[str]  # N
    ids: list[list[int]]  # N, with the end token where it ended, without padding
    ended: list[bool]  # N


@dataclass
class Stopwatch:
    """How long generation took."""

    seconds: float = 0.0
    num_tokens: int = 0
    alone_s: list[float] = field(default_factory=list)  # of single prompts

    @property
    def figures(self) -> dict[str, float]:
        """Tokens a second in batches, and the median seconds of a prompt that is answered alone."""
        found = {"tokens_per_s": self.num_tokens / self.seconds} if self.seconds else {}
        return found | ({"latency_s": median(self.alone_s)} if self.alone_s else {})


@dataclass(frozen=True)
class Model:
    """A language model that answers; `home` is SFT's tokenizer, `own` the model's."""

    lm: PreTrainedModel
    own: PreTrainedTokenizerBase
    home: PreTrainedTokenizerBase
    stopwatch: Stopwatch

    @property
    def is_at_home(self) -> bool:
        """Whether the model reads SFT's tokens; only then have their probabilities anything to do with each other."""
        return self.own is self.home


def load_model(folder: Path, home: PreTrainedTokenizerBase, dtype: str) -> Model:
    """The language model in `folder` on the device that there is."""
    own = load_tokenizer(folder)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    lm = load_causal_lm(folder, dtype).to(device)
    return Model(lm, home if same_tokens(own, home) else own, home, Stopwatch())


def same_tokens(first: PreTrainedTokenizerBase, second: PreTrainedTokenizerBase) -> bool:
    """Whether token ids, EOS among them, of the one mean the same to the other."""
    return reads_same_tokens(first, second) and first.eos_token_id == second.eos_token_id


def answer(
    model: Model,
    prompts: Sequence[Text],
    uniforms: Tensor | None,
    config: EvaluateConfig,
    on_batch: Callable[[Rows], None] = lambda _: None,
) -> Rows:
    """The model's response to each prompt, drawn with uniforms [N, R]; None: the likeliest tokens.

    Every model draws with the same numbers, a row of them a prompt: equal models give equal answers, and neither the
    batch size nor a prompt's neighbours change an answer.
    """
    ids = [encode_prompt(model.own, prompt, config.conversation_template) for prompt in prompts]
    _require_room(ids, model, config)
    parts = []
    for start in range(0, len(prompts), config.batch_size):
        batch = slice(start, start + config.batch_size)
        parts.append(_answer_batch(model, ids[batch], None if uniforms is None else uniforms[batch], config))
        on_batch(parts[-1])
    return Rows(
        texts=[text for part in parts for text in part.texts],
        ids=[ids for part in parts for ids in part.ids],
        ended=[ended for part in parts for ended in part.ended],
    )


def time_alone(model: Model, prompts: Sequence[Text], config: EvaluateConfig) -> None:
    """Answer each prompt by itself, greedily, for the stopwatch; the first one twice, for it also warms up."""
    for prompt in [*prompts[:1], *prompts]:
        started = time.monotonic()
        answer(model, [prompt], None, config)
        model.stopwatch.alone_s.append(time.monotonic() - started)
    del model.stopwatch.alone_s[:1]


def kl_of(model: Model, reference: Model, prompts: Sequence[Text], rows: Rows, config: EvaluateConfig) -> Tensor:
    """[N] nats: KL(model || reference) over each of the model's own sampled responses; see `kl_per_response`.

    Both by the same pass: what generation keeps differs by rounding, which bfloat16 makes visible in the KL.
    """
    assert model.is_at_home
    episodes = as_episodes(model.home, prompts, rows, config).each(lambda tensor: tensor.to(model.lm.device))
    logprobs, ref_logprobs = (_logprobs(one.lm, episodes, config) for one in (model, reference))
    return kl_per_response(logprobs, ref_logprobs, episodes.mask)


def _logprobs(lm: PreTrainedModel, episodes: Episodes, config: EvaluateConfig) -> Tensor:
    """[N, R] of the response tokens."""
    temperature = config.sampling.temperature
    return measure_tokens(lambda part: logprobs_of(lm, part, temperature), episodes, config.token_budget)


def as_episodes(home: PreTrainedTokenizerBase, prompts: Sequence[Text], rows: Rows, config: EvaluateConfig) -> Episodes:
    """Prompts and responses as rows of SFT's tokens."""
    ids, mask = pad_right(rows.ids, 0)
    return join([encode_prompt(home, prompt, config.conversation_template) for prompt in prompts], ids, mask)


def _answer_batch(
    model: Model, prompts: Sequence[Sequence[int]], uniforms: Tensor | None, config: EvaluateConfig
) -> Rows:
    """uniforms: [b, R]."""
    sampling, template_ids = with_stops(config.conversation_template, config.sampling, model.own)
    started = time.monotonic()
    responses = generate(
        model.lm,
        prompts,
        sampling,
        uniforms=uniforms,
        stop_ids=sorted({*template_ids, *stop_token_ids(model.lm, model.own)}),
        tokenizer=model.own,
        pad_token_id=model.own.pad_token_id,
        rows_at_once=config.batch_size,
    )
    rows = _in_home_tokens(model, responses, config)
    model.stopwatch.seconds += time.monotonic() - started
    model.stopwatch.num_tokens += int(responses.mask.sum())
    return rows


def _in_home_tokens(model: Model, responses: Responses, config: EvaluateConfig) -> Rows:
    """The responses as they are, or of a model with other tokens their texts, tokenised anew."""
    own, ended = responses.unpadded(), responses.ended.tolist()
    texts = [decode_response(model.own, row, config.conversation_template) for row in own]
    if model.is_at_home:
        return Rows(texts, own, ended)
    ends = [[model.home.eos_token_id] if stopped else [] for stopped in ended]
    ids = [model.home(text, add_special_tokens=False)["input_ids"] for text in texts]
    return Rows(texts, [row + end for row, end in zip(ids, ends, strict=True)], ended)


def _require_room(prompts: Sequence[Sequence[int]], model: Model, config: EvaluateConfig) -> None:
    room = getattr(model.lm.config, "max_position_embeddings", None)
    longest, length = max(len(prompt) for prompt in prompts), config.sampling.response_length
    if room is not None and longest + length > room:
        raise InputError(
            f"The longest prompt has {longest} tokens; with sampling.response_length {length} that is "
            f"more than the model's {room} positions. Lower it, or leave long prompts out in prepare_data."
        )
