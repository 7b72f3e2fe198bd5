"""Reward models of a few thousand weights, on tokenizers whose ids differ, and answers to score."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForSequenceClassification, PreTrainedTokenizerFast

from tasks.episodes import join
from tasks.models.modeling import save_offset
from tasks.prompts import Prompt
from tasks.rewards.sources import Answers

SPECIAL = ("<pad>", "<eos>", "<unk>")
WORDS = ("a", "b", "c", "good", "bad", "\n", "U:", "A:")
TOKENS = (*SPECIAL, *(space + word for word in WORDS for space in ("", " ")))
OTHER_TOKENS = tuple(reversed(TOKENS))  # the same words by other ids
TEMPLATE = (
    "{% for message in messages %}{{ 'U:' if message.role == 'user' else 'A:' }} {{ message.content }}"
    "{{ eos_token if message.role == 'assistant' else '' }}{{ ' \n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'A:' }}{% endif %}"
)


def make_tokenizer(tokens: Sequence[str] = TOKENS, template: str | None = None) -> PreTrainedTokenizerFast:
    """A word with or without a space before it is a token; its id is its place in `tokens`."""
    tokenizer = Tokenizer(models.WordLevel({token: index for index, token in enumerate(tokens)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r" ?(\n|[^\s]+)"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", chat_template=template
    )
    assert fast.get_vocab() == {token: index for index, token in enumerate(tokens)}
    return fast


def write_reward_model(
    folder: Path,
    tokens: Sequence[str] = TOKENS,
    *,
    template: str | None = None,
    trained_here: bool = True,
    **sizes: int,
) -> Path:
    """A `reward_model` folder; whatever the order of `tokens`, the same text gets the same score."""
    torch.manual_seed(1)
    options = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    classifier = LlamaForSequenceClassification(
        LlamaConfig(
            **options | {"vocab_size": len(TOKENS), "max_position_embeddings": 32} | sizes,
            num_labels=1,
            initializer_range=0.3,
            pad_token_id=tokens.index("<pad>"),
        )
    ).eval()
    embeddings = classifier.get_input_embeddings().weight
    with torch.no_grad():
        embeddings.copy_(embeddings[[TOKENS.index(token) for token in tokens]].clone())
    classifier.save_pretrained(folder)
    make_tokenizer(tokens, template).save_pretrained(folder)
    if trained_here:
        save_offset(folder, 0.25)
    return folder


def make_answers(
    tokenizer: PreTrainedTokenizerFast,
    pairs: Sequence[tuple[Any, str]],
    columns: Sequence[Mapping[str, Any]] | None = None,
) -> Answers:
    """Prompts with responses that ended, in the tokenizer's tokens; the records' columns if given."""
    prompts, responses = [], []
    for index, (prompt, response) in enumerate(pairs):
        text, written = prompt, response
        if not isinstance(prompt, str):  # the template writes a space before an answer
            text = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
            written = f" {response}"
        prompts.append(Prompt(tokenizer(text)["input_ids"], prompt, dict(columns[index]) if columns else {}, "prompts"))
        responses.append([*tokenizer(written)["input_ids"], tokenizer.eos_token_id])
    mask = torch.zeros(len(responses), max(map(len, responses)), dtype=torch.bool)
    ids = torch.full(mask.shape, tokenizer.pad_token_id)
    for row, response_ids in enumerate(responses):
        mask[row, : len(response_ids)] = True
        ids[row, : len(response_ids)] = torch.tensor(response_ids)
    episodes = join([prompt.ids for prompt in prompts], ids, mask)
    return Answers(prompts, episodes, [response for _, response in pairs])
