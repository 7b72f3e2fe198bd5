"""Whether reward model and policy write the same text as the same tokens."""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from tasks.certify.readers import Reader
from tasks.data import encode_prompt
from tasks.prompts import Prompt
from tasks.templates import ConversationTemplate

NUM_COMPARED = 32


@dataclass(frozen=True)
class Match:
    """A figure from 0 to 1, None where there is nothing to compare, and what a person has to know of it."""

    share: float | None
    verdict: str


def tokenizer_match(policy: PreTrainedTokenizerBase, reader: Reader) -> Match:
    """Whether token ids, EOS among them, mean the same to both."""
    own, other = policy.get_vocab(), reader.tokenizer.get_vocab()
    ends = policy.eos_token, reader.tokenizer.eos_token
    if own == other and ends[0] == ends[1]:
        return Match(1.0, f"The reward model reads the policy's tokens: {len(own)} tokens, EOS {ends[0]!r}.")
    if own == other:
        what = f"ends at {ends[1]!r}, the policy at {ends[0]!r}: the score is read at another token than in training"
        return Match(0.0, f"The reward model has the policy's tokens, but {what}.")
    differing = sorted(token for token in own.keys() | other.keys() if own.get(token) != other.get(token))
    return Match(
        0.0,
        f"The reward model has another tokenizer than the policy ({len(other)} tokens against {len(own)}, first "
        f"difference at {differing[0]!r}): it reads the texts in tokens of its own.",
    )


def template_match(
    policy: PreTrainedTokenizerBase,
    reader: Reader,
    template: ConversationTemplate | None,
    prompts: Sequence[Prompt],
) -> Match:
    """The share of the first prompts that the reward model's own chat template writes as the policy's does."""
    if template is None and all(isinstance(prompt.prompt, str) for prompt in prompts):
        return Match(None, "The prompts are plain texts: no chat template is used.")
    if not reader.reads_policy_tokens:
        return Match(None, "The reward model writes conversations by the chat template of its own tokenizer.")
    if reader.tokenizer.chat_template is None:
        return Match(0.0, "The reward model has no chat template, so it was not trained on the policy's conversations.")
    own = None if template is None else template.model_copy(update={"chat_template": None})
    compared = prompts[:NUM_COMPARED]
    same = [prompt.ids == encode_prompt(reader.tokenizer, prompt.prompt, own) for prompt in compared]
    if all(same):
        return Match(1.0, f"Both write the {len(same)} conversations that were compared as the same tokens.")
    first = compared[same.index(False)]
    theirs = reader.tokenizer.decode(encode_prompt(reader.tokenizer, first.prompt, own))
    return Match(
        sum(same) / len(same),
        f"The reward model's chat template writes {same.count(False)} of {len(same)} conversations otherwise than the "
        f"policy's: {theirs[:120]!r} for {policy.decode(first.ids)[:120]!r}.",
    )
