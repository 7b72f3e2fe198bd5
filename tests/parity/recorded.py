"""The fixture that make_trl_fixture.py wrote, read back, and what our functions make of its tokens.

Shapes: B episodes, R response tokens at most, N response tokens of all rows in a row.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from tasks.episodes import Episodes, join
from tasks.models.modeling import ScalarModel, backbone, classifier_head

FIXTURE = Path(__file__).with_name("trl_1_12")
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
HEAD_NAMES = {"backbone": "model", "head": "score"}  # of a ScalarModel: of a Hugging Face classifier


@dataclass(frozen=True)
class Recorded:
    """A run of TRL's trainer."""

    name: str
    settings: Mapping[str, Any]
    logged: Mapping[str, float]

    def __getitem__(self, tensor: str) -> Tensor:
        return tensors()[f"{self.name}.{tensor}"]

    @property
    def prompts(self) -> list[list[int]]:
        """Without their padding on the left."""
        pad = description()["model"]["pad_token_id"]
        return [[token for token in row if token != pad] for row in self["queries"].tolist()]

    @property
    def mask(self) -> Tensor:
        """True at response tokens, EOS included, [B, R] bool."""
        return torch.arange(self["responses"].shape[1]) <= self["sequence_lengths"][:, None]

    @property
    def ended(self) -> Tensor:
        """Whether the last response token is EOS, [B] bool."""
        last = self["responses"].gather(1, self["sequence_lengths"][:, None])[:, 0]
        return last == description()["model"]["eos_token_id"]

    def episodes(self, mask: Tensor | None = None) -> Episodes:
        """The rollout as our rows; `mask` [B, R] in place of the response's own."""
        return join(self.prompts, self["responses"], self.mask if mask is None else mask)

    def gradients(self, step: int, part: str) -> dict[str, Tensor]:
        """Of the policy's or value model's parameters, by name, before optimizer step 0, 1, ..."""
        return _below(f"{self.name}.step_{step}.gradients.{part}.")

    def trained(self, part: str) -> dict[str, Tensor]:
        """The weights after the run, by name."""
        return _below(f"{self.name}.trained.{part}.")


@cache
def tensors() -> dict[str, Tensor]:
    return load_file(FIXTURE.with_suffix(".safetensors"))


@cache
def description() -> dict[str, Any]:
    return json.loads(FIXTURE.with_suffix(".json").read_text())


def recorded(name: str) -> Recorded:
    """The run of that name."""
    settings = description()["settings"] | description()["runs"][name]
    return Recorded(name, settings, description()["logged"].get(name, {}))


def language_model(part: str) -> LlamaForCausalLM:
    """The policy or the reference before training."""
    model = LlamaForCausalLM(LlamaConfig(**description()["model"]))
    model.load_state_dict(_below(f"weights.{part}."))
    return model.eval()


def classifier(part: str) -> LlamaForSequenceClassification:
    """The value or the reward model before training, as Hugging Face has it."""
    model = LlamaForSequenceClassification(LlamaConfig(**description()["model"], num_labels=1))
    model.load_state_dict(_below(f"weights.{part}."))
    return model.eval()


def scalar_model(part: str) -> ScalarModel:
    """The value or the reward model before training, as ours."""
    model = classifier(part)
    return ScalarModel(backbone(model), classifier_head(model))


def parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """By the names that the fixture uses, those of Hugging Face."""
    if not isinstance(model, ScalarModel):
        return dict(model.named_parameters())
    names = {name: name.partition(".") for name, _ in model.named_parameters()}
    return {HEAD_NAMES[part] + "." + rest: model.get_parameter(name) for name, (part, _, rest) in names.items()}


def _below(prefix: str) -> dict[str, Tensor]:
    found = {name.removeprefix(prefix): tensor for name, tensor in tensors().items() if name.startswith(prefix)}
    assert found, prefix
    return found
