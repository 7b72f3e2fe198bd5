"""Whether two language models say the same: their logits and their greedy text on the same prompts.

One model is in memory at a time: the first one's answers are kept, and the second is asked the same.

Shapes: V vocabulary, T tokens of a row, K of them kept.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from tasks.config import ProofConfig
from tasks.data import encode_prompt, prompt_text, read_split
from tasks.errors import InputError
from tasks.models.shards import same_bits
from tasks.templates import Text

LENGTH = 24  # tokens of a drawn row
LONGEST = 256  # tokens of a prompt that are looked at: its last ones
KEPT = 32  # positions at the end of a row whose logits are kept: [K, V] float32 for each row
NUM_GREEDY = 4
GREEDY_LENGTH = 16


class ModelsDiffer(InputError):
    """Two models that must say the same do not; carries the figures, and nothing was kept."""


@dataclass(frozen=True)
class Answers:
    """What a model says to prompts."""

    texts: list[list[int]]  # greedy continuations of the first prompts
    rows: list[list[int]]  # each prompt, with its continuation if it has one
    logits: list[Tensor]  # [K, V] float32, at the end of each row


@dataclass(frozen=True)
class Difference:
    """How far two models' answers are apart."""

    largest: float  # difference of a logit, absolute
    scale: float  # largest logit of the first model, absolute
    num_rows: int
    equal_bits: bool
    num_greedy: int
    num_greedy_equal: int
    widest_lead: (
        float  # largest lead, in the first model's logits, of its greedy token over the other's where they part
    )

    @property
    def relative(self) -> float:
        """The largest difference as a share of the largest logit."""
        return self.largest / self.scale if self.scale else self.largest

    def figures(self) -> dict[str, Any]:
        """For report.json."""
        return {
            "logits_equal": self.equal_bits,
            "max_abs_difference": self.largest,
            "max_relative_difference": self.relative,
            "largest_logit": self.scale,
            "num_rows": self.num_rows,
            "num_greedy_texts": self.num_greedy,
            "num_greedy_texts_equal": self.num_greedy_equal,
        }


def comparison_rows(
    config: ProofConfig, data: Path | None, tokenizer: PreTrainedTokenizerBase, model: PreTrainedConfig
) -> list[list[int]]:
    """Token rows of held-out prompts in `data`, of the config's prompts, and drawn from the `model`'s vocabulary."""
    prompts: list[Text] = list(config.prompts)
    if data is not None:
        prompts = [record["prompt"] for record in read_split(data, "prompts", "test")[: config.num_prompts]] + prompts
    rows = [_encode(tokenizer, prompt) for prompt in prompts]
    rows = [row for row in rows if row] + random_rows(model.vocab_size, config.num_prompts, config.seed)
    context = getattr(model, "max_position_embeddings", None) or LONGEST + GREEDY_LENGTH
    longest = max(1, min(LONGEST, context - GREEDY_LENGTH))
    return [row[-longest:] for row in rows]


def random_rows(vocab_size: int, num_rows: int, seed: int) -> list[list[int]]:
    """Rows of LENGTH token ids drawn from the vocabulary: the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(vocab_size, (num_rows, LENGTH), generator=generator).tolist()


@torch.no_grad()
def answers_of(model: PreTrainedModel, prompts: Sequence[Sequence[int]], like: Answers | None = None) -> Answers:
    """The model's greedy text and logits, one row a forward: no padding, so that equal models give equal bits.

    The logits are of the prompts with this model's own greedy text, or of the rows of `like`, to be compared with it.
    """
    _align(model)
    texts = [_greedy(model, prompt) for prompt in prompts[:NUM_GREEDY]]
    own = [[*prompt, *text] for prompt, text in zip(prompts, texts, strict=False)]
    rows = like.rows if like else [*own, *map(list, prompts[NUM_GREEDY:])]
    return Answers(texts, rows, [_last_logits(model, row) for row in rows])


def difference(first: Answers, second: Answers) -> Difference:
    """The largest difference between two models' logits of the same rows, and where their greedy texts part."""
    pairs = list(zip(first.logits, second.logits, strict=True))
    leads = [_lead(first, second, row) for row in range(len(first.texts))]
    parted = [lead for lead in leads if lead is not None]
    return Difference(
        largest=_largest([one - other for one, other in pairs]),
        scale=_largest(first.logits),
        num_rows=len(pairs),
        equal_bits=all(same_bits(one, other) for one, other in pairs),
        num_greedy=len(leads),
        num_greedy_equal=len(leads) - len(parted),
        widest_lead=max(parted, default=0.0),
    )


def require_agreement(first: Answers, second: Answers, tolerance: float, what: str) -> Difference:
    """How far two models are apart; raises ModelsDiffer, which begins with `what`, beyond `tolerance`.

    That is a share of the largest logit; 0 asks for equal bits and equal greedy text. Otherwise a greedy text may part
    where the two tokens' logits are so close that a difference within the tolerance turns them round: twice that.
    """
    found = difference(first, second)
    allowed = tolerance * found.scale
    same_logits = found.equal_bits if tolerance == 0 else found.largest <= allowed
    same_text = found.num_greedy_equal == found.num_greedy if tolerance == 0 else found.widest_lead <= 2 * allowed
    if not same_logits or not same_text:
        raise ModelsDiffer(
            f"{what}: largest difference of a logit {found.largest:.3g}, {found.relative:.3g} of the largest logit "
            f"{found.scale:.3g}, over {found.num_rows} rows; allowed {tolerance:.3g}"
            f"{' (equal bits)' if tolerance == 0 else ''}. Greedy text equal for {found.num_greedy_equal} of "
            f"{found.num_greedy} prompts; where it parts the first model leads by up to {found.widest_lead:.3g}, "
            f"allowed {2 * allowed:.3g}. Nothing was kept."
        )
    return found


def _encode(tokenizer: PreTrainedTokenizerBase, prompt: Text) -> list[int]:
    """The prompt through the tokenizer's chat template; a conversation's text alone where it has none."""
    readable = isinstance(prompt, str) or tokenizer.chat_template is not None
    return encode_prompt(tokenizer, prompt if readable else prompt_text(prompt))


def _align(model: PreTrainedModel) -> None:
    """Move the weights out of mapped files: where a matrix begins in memory can change the last bit of a product."""
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()


def _greedy(model: PreTrainedModel, prompt: Sequence[int]) -> list[int]:
    """GREEDY_LENGTH tokens, past any EOS: what ends a text is the generation config's, not the model's."""
    ids, cache = torch.tensor([list(prompt)]), None
    text: list[int] = []
    while len(text) < GREEDY_LENGTH:
        output = model(input_ids=ids, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        text.append(int(output.logits[0, -1].argmax()))
        ids = torch.tensor([text[-1:]])
    return text


def _last_logits(model: PreTrainedModel, row: Sequence[int]) -> Tensor:
    logits = model(input_ids=torch.tensor([list(row)]), use_cache=False).logits[0, -KEPT:]
    return logits.float().clone()


def _largest(tensors: Sequence[Tensor]) -> float:
    """The largest absolute number; NaN if there is one."""
    return torch.stack([tensor.abs().max() for tensor in tensors]).max().item()


def _lead(first: Answers, second: Answers, row: int) -> float | None:
    """How much likelier than the second model's token the first finds its own where the texts part; None: nowhere."""
    ours, theirs = first.texts[row], second.texts[row]
    if ours == theirs:
        return None
    place = next(index for index, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1])
    logits = first.logits[row][place - len(ours) - 1]
    return (logits[ours[place]] - logits[theirs[place]]).item()
