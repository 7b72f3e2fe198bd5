"""Write the folders that a workload's runs read: models, prompts, and what our trainer wants beside them.

python -m tests.benchmarks.inputs --workload tiny FOLDER [--set batch_size=64 vocab_size=3000]
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch
from datasets import Dataset

from tasks.config import LoraConfig
from tasks.models.adapters import add_lora, save_adapter
from tasks.models.modeling import ScalarHead, load_causal_lm, load_tokenizer, save_scalar_head
from tests.benchmarks.workloads import (
    LORA_RANK,
    WORKLOADS,
    Workload,
    make_prompts,
    texts,
    write_models,
)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write what a workload's runs read.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--workload", choices=WORKLOADS, required=True)
    parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=NUMBER", help="change the workload")
    arguments = parser.parse_args()
    changes = {name: json.loads(number) for name, _, number in (change.partition("=") for change in arguments.set)}
    write_inputs(arguments.folder, replace(WORKLOADS[arguments.workload], **changes))


def write_inputs(folder: Path, workload: Workload) -> None:
    """Write folders policy, value, reward_model, reward_adapter, reward_adapter_upper and data."""
    folder.mkdir(parents=True, exist_ok=True)
    write_models(folder, workload)
    _write_reward_adapter(folder / "reward_adapter", folder / "policy", None)
    _write_reward_adapter(folder / "reward_adapter_upper", folder / "policy", workload.trainable_layers)
    data = folder / "data"
    data.mkdir(exist_ok=True)
    for split in ("train", "test"):
        Dataset.from_dict({"prompt": texts(make_prompts(workload))}).to_parquet(data / f"prompts_{split}.parquet")


def _write_reward_adapter(folder: Path, policy: Path, num_layers: int | None) -> None:
    torch.manual_seed(4)
    adapted = add_lora(load_causal_lm(policy), LoraConfig(r=LORA_RANK), ["reward"], num_layers)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02)
    save_adapter(folder, adapted, "reward", load_tokenizer(policy))
    save_scalar_head(folder, ScalarHead(adapted.get_base_model().config.hidden_size))


if __name__ == "__main__":
    main()
