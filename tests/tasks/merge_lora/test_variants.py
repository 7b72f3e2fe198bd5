"""Merging layer by layer against PEFT's merge_and_unload of the whole model, for what a LoRA adapter can be."""

import json
from pathlib import Path

import peft
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
)

from tasks.errors import InputError
from tasks.merge_lora.config import MergeLoraConfig
from tasks.merge_lora.run import main
from tasks.models.logits import ModelsDiffer
from tests.tasks.tiny_models import HIDDEN, make_model, make_tokenizer

pytestmark = pytest.mark.slow

IDS = torch.tensor([[3, 5, 7, 9]])
ATTENTION = {"target_modules": ["q_proj", "v_proj"]}
VARIANTS = {
    "plain": ATTENTION,
    "all linear layers": {"target_modules": "all-linear"},
    "rsLoRA": {**ATTENTION, "use_rslora": True},
    "DoRA": {**ATTENTION, "use_dora": True},
    "patterns": {**ATTENTION, "rank_pattern": {"layers.0.*q_proj": 3}, "alpha_pattern": {"v_proj": 17}},
    "some layers": {**ATTENTION, "layers_to_transform": [1], "layers_pattern": "layers"},
    "LoRA's own bias": {**ATTENTION, "lora_bias": True},
    "trained biases of its layers": {**ATTENTION, "bias": "lora_only"},
    "all biases trained": {**ATTENTION, "bias": "all"},
    "a layer and norms trained whole": {**ATTENTION, "modules_to_save": ["norm", "mlp"]},
    "the head trained whole": {**ATTENTION, "modules_to_save": ["lm_head"]},
    "the embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    "the head": {"target_modules": ["q_proj", "lm_head"]},
    "single tokens": {**ATTENTION, "trainable_token_indices": [3, 5]},
}
IN_MEMORY = ("single tokens",)
IN_BFLOAT16 = ("plain", "DoRA", "all biases trained", "the head trained whole")
BREAKS_TIES = ("the head trained whole", "the embedding", "the head")


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=19, n_positions=64, n_embd=HIDDEN, n_layer=2, n_head=2)).eval()


def write(tmp_path: Path, model: PreTrainedModel, shard: str = "4KB", **options) -> dict[str, Path]:
    """`model` and an adapter with noise in every tensor of it, both as their libraries save them."""
    model.save_pretrained(tmp_path / "base", max_shard_size=shard)
    make_tokenizer().save_pretrained(tmp_path / "base")
    config = peft.LoraConfig(r=2, lora_alpha=3, task_type="CAUSAL_LM", init_lora_weights=False, **options)
    torch.manual_seed(1)
    adapted = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32), config)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
    adapted.save_pretrained(tmp_path / "adapter")
    return {"model": tmp_path / "base", "adapter": tmp_path / "adapter"}


def by_peft(inputs: dict[str, Path]) -> PeftModel:
    base = AutoModelForCausalLM.from_pretrained(inputs["model"], dtype=torch.float32)
    return PeftModel.from_pretrained(base, inputs["adapter"]).eval()


def tensors_in(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def report_in(folder: Path) -> dict[str, object]:
    return json.loads((folder / "report.json").read_text())


@pytest.mark.parametrize(
    ("variant", "dtype"),
    [(name, torch.float32) for name in VARIANTS] + [(name, torch.bfloat16) for name in IN_BFLOAT16],
)
def test_each_tensor_is_that_of_pefts_own_merge_to_the_bit(tmp_path, variant, dtype):
    inputs = write(tmp_path, make_model(attention_bias=True).to(dtype), **VARIANTS[variant])
    main(MergeLoraConfig(saved_tolerance=0.5, max_shard_size="4KB"), inputs, tmp_path / "output")
    expected = by_peft(inputs).merge_and_unload(safe_merge=True).to(dtype).state_dict()
    found = tensors_in(tmp_path / "output")
    assert found.keys() == expected.keys()
    assert not [name for name in found if not torch.equal(found[name], expected[name])]
    assert (report_in(tmp_path / "output")["merged"] == "layer by layer") == (variant not in IN_MEMORY)
    assert report_in(tmp_path / "output")["dtype"] == str(dtype).removeprefix("torch.")


@pytest.mark.parametrize("variant", BREAKS_TIES)
def test_tied_embeddings_of_which_one_changes_become_two(tmp_path, variant):
    inputs = write(tmp_path, make_model(tie_word_embeddings=True), **VARIANTS[variant])
    main(MergeLoraConfig(), inputs, tmp_path / "output")
    assert "lm_head.weight" in tensors_in(tmp_path / "output")
    assert json.loads((tmp_path / "output" / "config.json").read_text())["tie_word_embeddings"] is False
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "output")
    torch.testing.assert_close(merged(IDS).logits, by_peft(inputs)(IDS).logits, rtol=1e-4, atol=1e-4)


def test_tied_embeddings_that_do_not_change_stay_one(tmp_path):
    inputs = write(tmp_path, make_model(tie_word_embeddings=True), **ATTENTION)
    main(MergeLoraConfig(), inputs, tmp_path / "output")
    assert "lm_head.weight" not in tensors_in(tmp_path / "output")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "output")
    torch.testing.assert_close(merged(IDS).logits, by_peft(inputs)(IDS).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("use_dora", [False, True])
def test_gpt2s_transposed_layers_are_merged_in_their_own_direction(tmp_path, use_dora):
    inputs = write(tmp_path, gpt2(), target_modules=["c_attn", "c_proj"], use_dora=use_dora)
    main(MergeLoraConfig(), inputs, tmp_path / "output")
    expected = by_peft(inputs).merge_and_unload(safe_merge=True).state_dict()
    found = tensors_in(tmp_path / "output")
    assert found.keys() == expected.keys() - {"lm_head.weight"}
    assert not [name for name in found if not torch.equal(found[name], expected[name])]
    assert report_in(tmp_path / "output")["num_merged_layers"] == 6


def test_experts_that_transformers_stores_one_by_one_are_merged_in_memory(tmp_path):
    torch.manual_seed(0)
    sizes = {"hidden_size": HIDDEN, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    experts = {"num_key_value_heads": 2, "num_local_experts": 2, "max_position_embeddings": 64, "vocab_size": 19}
    inputs = write(tmp_path, MixtralForCausalLM(MixtralConfig(**sizes, **experts)).eval(), **ATTENTION)
    main(MergeLoraConfig(), inputs, tmp_path / "output")
    assert "in memory" in report_in(tmp_path / "output")["merged"]
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "output")
    torch.testing.assert_close(merged(IDS).logits, by_peft(inputs)(IDS).logits, rtol=1e-4, atol=1e-4)


def test_a_layer_that_peft_merges_wrongly_is_named(tmp_path, monkeypatch):
    inputs = write(tmp_path, make_model(), **ATTENTION)
    get_delta_weight = peft.tuners.lora.Linear.get_delta_weight
    monkeypatch.setattr(peft.tuners.lora.Linear, "get_delta_weight", lambda *given: 1.01 * get_delta_weight(*given))
    with pytest.raises(ModelsDiffer, match=r"model\.layers\.0\.self_attn\.q_proj: merged in float32 the layer differs"):
        main(MergeLoraConfig(), inputs, tmp_path / "output")
    assert not list((tmp_path / "output").iterdir())


def test_another_kind_of_adapter_is_refused(tmp_path):
    inputs = write(tmp_path, make_model(), **ATTENTION)
    path = inputs["adapter"] / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "peft_type": "LOHA"}))
    with pytest.raises(InputError, match="expected a LoRA adapter, found LOHA"):
        main(MergeLoraConfig(), inputs, tmp_path / "output")


def test_a_quantised_base_is_refused(tmp_path):
    inputs = write(tmp_path, make_model(), **ATTENTION)
    path = inputs["model"] / "config.json"
    content = {**json.loads(path.read_text()), "quantization_config": {"quant_method": "gptq"}}
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"quantised \(gptq\)"):
        main(MergeLoraConfig(), inputs, tmp_path / "output")
