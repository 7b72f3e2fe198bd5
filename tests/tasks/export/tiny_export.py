"""What an export takes, in miniature: a model, its evaluation, and an adapter on a base that it was merged from."""

import json
from pathlib import Path
from typing import Any

import torch

from tasks.config import LoraConfig
from tasks.models.adapters import add_lora, load_merged, save_adapter
from tasks.models.modeling import load_causal_lm, save_model
from tests.tasks.evaluate import tiny_chain

SAMPLING = {"response_length": 5, "min_new_tokens": 0, "temperature": 0.8, "top_k": 0, "top_p": 1.0}
SAMPLES = [{"prompt": "good film", "after": "very warm"}, {"prompt": "bad plot", "after": "not dull"}]


def write_evaluation(folder: Path, conversational: bool = False, **sampling: Any) -> Path:
    folder.mkdir()
    config = {"sampling": SAMPLING | sampling}
    (folder / "evaluation.json").write_text(json.dumps({"config": config, "conversational": conversational}))
    (folder / "samples.json").write_text(json.dumps(SAMPLES))
    (folder / "report.md").write_text("# PPO against SFT\n\nPPO beats SFT.\n")
    return folder


def write_adapted(folder: Path) -> dict[str, Path]:
    """A base, an adapter on it, and the model that the two make: the inputs of an export with its adapter."""
    base = tiny_chain.write_model(folder / "base", seed=0)
    torch.manual_seed(2)
    model = add_lora(load_causal_lm(base), LoraConfig(r=2), ["x"])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    save_adapter(folder / "adapter", model, "x", tiny_chain.make_tokenizer())
    save_model(folder / "model", load_merged(base, folder / "adapter"), tiny_chain.make_tokenizer())
    return {"model": folder / "model", "adapter": folder / "adapter", "adapter_base": base}
