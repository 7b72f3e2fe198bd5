"""Records for a language-model loss beside PPO's (PTX): what the policy could before, it shall not forget."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from tasks.data import pad_right, read_split
from tasks.episodes import Episodes, join
from tasks.errors import InputError
from tasks.examples import encode_pair
from tasks.generation import seeded_generator
from tasks.templates import ConversationTemplate

KINDS = ("ptx", "sft")


@dataclass(frozen=True)
class LanguageData:
    """Token ids of each record's prompt and completion."""

    records: Sequence[tuple[list[int], list[int]]]

    def batch(self, size: int, seed: int, step: int, device: torch.device) -> Episodes:
        """`size` records, drawn with replacement; a function of seed and step."""
        generator = seeded_generator("ptx", seed, step)
        drawn = [self.records[i] for i in torch.randint(len(self.records), (size,), generator=generator).tolist()]
        ids, mask = pad_right([completion for _, completion in drawn], 0)
        return join([prompt for prompt, _ in drawn], ids.to(device), mask.to(device))


def read_language_data(
    data: Path, tokenizer: PreTrainedTokenizerBase, longest: int | None, template: ConversationTemplate | None = None
) -> LanguageData:
    """The `ptx` records of the data folder, or the `sft` records where there are none; longer ones are cut.

    Plain texts, whose prompt is empty, are written without the template.
    Raises InputError where no token is left to learn from.
    """
    kind = next((kind for kind in KINDS if (data / f"{kind}_train.parquet").is_file()), KINDS[-1])
    records = read_split(data, kind, "train")
    pairs = [
        _opened(*encode_pair(tokenizer, record["prompt"], record["completion"], template if record["prompt"] else None))
        for record in records
    ]
    if longest is not None:
        pairs = [(prompt, completion[: max(0, longest - len(prompt))]) for prompt, completion in pairs]
    kept = [(prompt, completion) for prompt, completion in pairs if completion]
    if not kept:
        raise InputError(
            f"{data / kind}_train.parquet: none of its {len(records)} records has a prompt shorter than the model's "
            f"context of {longest} tokens. Set ptx_coef to 0, or give prepare_data a source of shorter texts for `ptx`."
        )
    print(f"{kind}_train: {len(kept)} records for the language-model loss")
    return LanguageData(kept)


def _opened(prompt: list[int], completion: list[int]) -> tuple[list[int], list[int]]:
    """The same tokens with at least one in the prompt: the first of a text has nothing to be predicted from."""
    return (prompt, completion) if prompt else (completion[:1], completion[1:])
