"""The memory in which a value head is taken off, an adapter merged, a model exported: two shards, however many."""

import json
import subprocess
import sys
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from tests.tasks.tiny_models import make_tokenizer

MIB = 2**20
SHARD_MIB = 64
NUM_SHARDS = 8
# 17 layers of seven matrices of 4 MiB in float32, and two embeddings of 16 MiB.
SIZES = {
    "hidden_size": 1024,
    "intermediate_size": 1024,
    "num_hidden_layers": 17,
    "num_attention_heads": 8,
    "vocab_size": 4096,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}
MEASURE = """
import re, sys
from pathlib import Path
import peft, torch, transformers.models.llama.modeling_llama
from tasks.export.weights import copy_weights, read_weights
from tasks.merge_lora import run as merging
from tasks.merge_lora.config import MergeLoraConfig
from tasks.models.modeling import load_tokenizer, quiet_libraries
from tasks.remove_value_head import run as removal
from tasks.remove_value_head.source import read_source

def peak_kib():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

quiet_libraries()
stage, source, adapter, output = sys.argv[1], *map(Path, sys.argv[2:])
output.mkdir()
tokenizer = load_tokenizer(source)
peft.get_peft_model(merging.outline(source), peft.LoraConfig(target_modules=["q_proj"]))  # loads what PEFT loads late
Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
before = peak_kib()
if stage == "remove_value_head":
    removal.write_policy(output, read_source(source, None), tokenizer, "67MB")
elif stage == "export":
    copy_weights(output, read_weights(source), torch.bfloat16, "33MB")
else:
    merging.write_merged(output, source, adapter, tokenizer, MergeLoraConfig(max_shard_size="67MB"))
print("\\n", peak_kib() - before)
"""


def matrices() -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**SIZES))
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of eight shards of 64 MiB, and a value head beside it."""
    folder = tmp_path_factory.mktemp("large")
    LlamaConfig(**SIZES, architectures=["LlamaForCausalLM"]).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    size = 0
    for name, shape in matrices().items():
        num_bytes = 4 * int(torch.Size(shape).numel())
        if size + num_bytes > SHARD_MIB * MIB:
            shards.append({})
            size = 0
        shards[-1][name] = shape
        size += num_bytes
    weight_map = {}
    for number, shapes in enumerate(shards):
        file = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        save_file({name: torch.ones(shape) for name, shape in shapes.items()}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shapes, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    save_file({"v_head.summary.weight": torch.ones(1, 1024)}, folder / "value_head.safetensors")
    assert len(shards) >= NUM_SHARDS
    return folder


@pytest.fixture(scope="module")
def adapter(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rank 4 on every linear layer."""
    folder = tmp_path_factory.mktemp("adapter")
    peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM").save_pretrained(folder)
    linear = [name.removesuffix(".weight") for name in matrices() if "_proj" in name]
    tensors = {
        f"base_model.model.{name}.lora_{side}.weight": torch.full(shape, 0.01)
        for name in linear
        for side, shape in (("A", (4, 1024)), ("B", (1024, 4)))
    }
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["remove_value_head", "merge_lora", "export"])
def test_the_memory_is_that_of_two_shards(stage: str, checkpoint: Path, adapter: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", MEASURE, stage, str(checkpoint), str(adapter), str(tmp_path / "output")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    grown_mib = int(done.stdout.split()[-1]) / 1024
    print(f"{stage}: {grown_mib:.0f} MiB")
    assert len(list((tmp_path / "output").glob("*.safetensors"))) >= NUM_SHARDS
    assert grown_mib < 2 * SHARD_MIB
