"""Checkpoints of TRL 0.x and LLaMA-Factory, each written here as its library lays it out."""

import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import peft
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from tasks.errors import InputError
from tasks.models.model_files import kind_of
from tasks.remove_value_head.config import RemoveValueHeadConfig
from tasks.remove_value_head.run import main
from tests.tasks.tiny_models import HIDDEN, make_model, make_tokenizer, write_model

pytestmark = pytest.mark.slow

IDS = torch.tensor([[3, 5, 7, 9]])
V_HEAD = {"v_head.summary.weight": torch.ones(1, HIDDEN), "v_head.summary.bias": torch.zeros(1)}
META = {"format": "pt"}
Write = Callable[[Path, Mapping[str, Tensor]], None]


def trl_single(folder: Path, policy: Mapping[str, Tensor]) -> None:
    """AutoModelForCausalLMWithValueHead.save_pretrained: the head's tensors among the model's."""
    save_file({**policy, **V_HEAD}, folder / "model.safetensors", metadata=META)


def trl_sharded(folder: Path, policy: Mapping[str, Tensor]) -> None:
    """The same beyond max_shard_size."""
    names = sorted({**policy, **V_HEAD})
    shards = {f"model-0000{part + 1}-of-00003.safetensors": names[part::3] for part in range(3)}
    for file, members in shards.items():
        save_file({name: {**policy, **V_HEAD}[name] for name in members}, folder / file, metadata=META)
    weight_map = {name: file for file, members in shards.items() for name in members}
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def wrapped(folder: Path, policy: Mapping[str, Tensor]) -> None:
    """The wrapper's own state, as DeepSpeed ZeRO-3 gathers it: the model below `pretrained_model.`"""
    trl_single(folder, {f"pretrained_model.{name}": tensor for name, tensor in policy.items()})


def wrapped_and_sharded(folder: Path, policy: Mapping[str, Tensor]) -> None:
    trl_sharded(folder, {f"pretrained_model.{name}": tensor for name, tensor in policy.items()})


def llama_factory(folder: Path, policy: Mapping[str, Tensor]) -> None:
    """LLaMA-Factory after fix_valuehead_checkpoint: the head in a file of its own."""
    save_file(dict(policy), folder / "model.safetensors", metadata=META)
    save_file(V_HEAD, folder / "value_head.safetensors", metadata=META)


def llama_factory_bin_head(folder: Path, policy: Mapping[str, Tensor]) -> None:
    save_file(dict(policy), folder / "model.safetensors", metadata=META)
    torch.save(V_HEAD, folder / "value_head.bin")


def trl_bin(folder: Path, policy: Mapping[str, Tensor]) -> None:
    """safe_serialization=False."""
    torch.save({**policy, **V_HEAD}, folder / "pytorch_model.bin")


SAFE: list[Write] = [trl_single, trl_sharded, wrapped, wrapped_and_sharded, llama_factory, llama_factory_bin_head]


def checkpoint(folder: Path, write: Write, model: torch.nn.Module | None = None, **options) -> torch.nn.Module:
    model = model or make_model(seed=1, **options)
    folder.mkdir()
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    tied = model.all_tied_weights_keys
    write(folder, {name: tensor.clone() for name, tensor in model.state_dict().items() if name not in tied})
    return model


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("write", SAFE, ids=lambda write: write.__name__)
def test_a_foreign_checkpoint_becomes_a_plain_model_with_equal_logits(tmp_path, write, tied):
    plain = checkpoint(tmp_path / "saved", write, tie_word_embeddings=tied)
    main(RemoveValueHeadConfig(), {"actor_critic": tmp_path / "saved"}, tmp_path / "output")
    assert kind_of(tmp_path / "output") == "model"
    loaded, info = AutoModelForCausalLM.from_pretrained(tmp_path / "output", output_loading_info=True)
    assert not any(info.values())
    assert torch.equal(loaded(IDS).logits, plain(IDS).logits)
    names = {name for path in (tmp_path / "output").glob("*.safetensors") for name in load_file(path)}
    assert names == set(plain.state_dict()) - set(plain.all_tied_weights_keys)
    assert not list((tmp_path / "output").glob("*.bin"))


def test_pickled_weights_are_refused_with_what_to_do(tmp_path):
    checkpoint(tmp_path / "saved", trl_bin)
    with pytest.raises(InputError, match=r"pytorch_model\.bin, which may be pickles.*Convert the weights"):
        main(RemoveValueHeadConfig(), {"actor_critic": tmp_path / "saved"}, tmp_path / "output")


def test_gpt2_with_its_older_buffers_is_read(tmp_path):
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=19, n_positions=64, n_embd=HIDDEN, n_layer=2, n_head=2)).eval()
    mask = {"transformer.h.0.attn.bias": torch.ones(1, 1, 64, 64, dtype=torch.bool)}
    checkpoint(tmp_path / "saved", lambda folder, policy: trl_single(folder, {**policy, **mask}), model)
    main(RemoveValueHeadConfig(), {"actor_critic": tmp_path / "saved"}, tmp_path / "output")
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path / "output")(IDS).logits, model(IDS).logits)


def test_weights_in_another_precision_than_the_config_says_keep_theirs(tmp_path):
    plain = checkpoint(tmp_path / "saved", trl_single)
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    (tmp_path / "saved" / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}))
    main(RemoveValueHeadConfig(), {"actor_critic": tmp_path / "saved"}, tmp_path / "output")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "output", dtype="auto")
    assert torch.equal(loaded(IDS).logits, plain(IDS).logits)


def test_config_and_tokenizer_may_come_from_the_base(tmp_path):
    plain = checkpoint(tmp_path / "saved", wrapped)
    base = write_model(tmp_path / "base")
    for path in (tmp_path / "saved").glob("*.json"):
        path.unlink()
    with pytest.raises(InputError, match=r"config\.json is missing.*--input model"):
        main(RemoveValueHeadConfig(), {"actor_critic": tmp_path / "saved"}, tmp_path / "output")
    main(RemoveValueHeadConfig(), {"actor_critic": tmp_path / "saved", "model": base}, tmp_path / "output")
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path / "output")(IDS).logits, plain(IDS).logits)


@pytest.mark.parametrize("write", [trl_single, trl_sharded])
def test_a_missing_and_an_extra_tensor_are_named(tmp_path, write):
    def damaged(folder: Path, policy: Mapping[str, Tensor]) -> None:
        rest = {name: tensor for name, tensor in policy.items() if name != "model.layers.1.mlp.up_proj.weight"}
        write(folder, {**rest, "model.layers.1.mlp.side_proj.weight": torch.ones(2)})

    checkpoint(tmp_path / "saved", damaged)
    with pytest.raises(
        InputError, match=r"missing model\.layers\.1\.mlp\.up_proj\.weight, unexpected model.*side_proj"
    ):
        main(RemoveValueHeadConfig(), {"actor_critic": tmp_path / "saved"}, tmp_path / "output")
    assert not list(tmp_path.glob("output/*"))


def test_a_tensor_of_another_shape_is_named(tmp_path):
    narrow = {"model.norm.weight": torch.ones(HIDDEN - 1)}
    checkpoint(tmp_path / "saved", lambda folder, policy: trl_single(folder, {**policy, **narrow}))
    with pytest.raises(InputError, match=r"of another shape model\.norm\.weight"):
        main(RemoveValueHeadConfig(), {"actor_critic": tmp_path / "saved"}, tmp_path / "output")


def test_shards_that_the_index_does_not_describe_are_named(tmp_path):
    checkpoint(tmp_path / "saved", trl_sharded)
    shard = tmp_path / "saved" / "model-00002-of-00003.safetensors"
    kept = load_file(shard)
    name = min(kept)
    kept["stray"] = kept.pop(name)
    save_file(kept, shard)
    with pytest.raises(InputError, match=rf"missing in the shards: {re.escape(name)}; not in the index: stray"):
        main(RemoveValueHeadConfig(), {"actor_critic": tmp_path / "saved"}, tmp_path / "output")
    shard.unlink()
    with pytest.raises(InputError, match=r"shards that are not there: model-00002-of-00003\.safetensors"):
        main(RemoveValueHeadConfig(), {"actor_critic": tmp_path / "saved"}, tmp_path / "output")


def test_a_truncated_file_is_named(tmp_path):
    checkpoint(tmp_path / "saved", trl_single)
    path = tmp_path / "saved" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"model\.safetensors is no safetensors file"):
        main(RemoveValueHeadConfig(), {"actor_critic": tmp_path / "saved"}, tmp_path / "output")


def test_a_critic_alone_is_refused_naming_what_lacks(tmp_path):
    """A critic as OpenRLHF writes it: a transformer and a head of one output, no language model."""

    def critic(folder: Path, policy: Mapping[str, Tensor]) -> None:
        trunk = {name: tensor for name, tensor in policy.items() if name != "lm_head.weight"}
        save_file({**trunk, "score.weight": torch.ones(1, HIDDEN)}, folder / "model.safetensors", metadata=META)

    checkpoint(tmp_path / "saved", critic)
    with pytest.raises(InputError, match="expected a policy with a value head"):
        main(RemoveValueHeadConfig(), {"actor_critic": tmp_path / "saved"}, tmp_path / "output")


def adapter_beside(folder: Path, base: Path, head: str) -> PeftModel:
    """A LoRA adapter as PEFT saves it, and the value head beside it as TRL 0.x or LLaMA-Factory leave it."""
    torch.manual_seed(3)
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).eval()
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    if head.endswith(".bin"):
        torch.save(V_HEAD, folder / head)
    else:
        save_file(V_HEAD, folder / head, metadata=META)
    return model


@pytest.mark.parametrize("head", ["pytorch_model.bin", "value_head.bin", "value_head.safetensors"])
def test_an_adapter_beside_a_value_head_becomes_a_plain_adapter(tmp_path, head):
    base = write_model(tmp_path / "base")
    adapted = adapter_beside(tmp_path / "saved", base, head)
    main(RemoveValueHeadConfig(), {"actor_critic": tmp_path / "saved", "model": base}, tmp_path / "output")
    assert kind_of(tmp_path / "output") == "adapter"
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "output")
    assert torch.equal(loaded(IDS).logits, adapted(IDS).logits)
    assert not (tmp_path / "output" / head).exists()
    assert json.loads((tmp_path / "output" / "report.json").read_text())["files_left_behind"] == head


def test_an_adapter_with_a_value_head_among_its_tensors_is_cleaned(tmp_path):
    base = write_model(tmp_path / "base")
    adapted = adapter_beside(tmp_path / "saved", base, "value_head.bin")
    (tmp_path / "saved" / "value_head.bin").unlink()
    path = tmp_path / "saved" / "adapter_model.safetensors"
    save_file({**load_file(path), **V_HEAD}, path, metadata=META)
    main(RemoveValueHeadConfig(), {"actor_critic": tmp_path / "saved", "model": base}, tmp_path / "output")
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "output")
    assert torch.equal(loaded(IDS).logits, adapted(IDS).logits)
    assert not [name for name in load_file(tmp_path / "output" / "adapter_model.safetensors") if "v_head" in name]


def test_an_adapter_whose_tensors_lack_one_is_refused_by_name(tmp_path):
    base = write_model(tmp_path / "base")
    adapter_beside(tmp_path / "saved", base, "value_head.bin")
    path = tmp_path / "saved" / "adapter_model.safetensors"
    tensors = load_file(path)
    del tensors["base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"]
    save_file(tensors, path, metadata=META)
    with pytest.raises(InputError, match=r"layers\.1\.self_attn\.q_proj\.lora_A\.weight: expected .* found None"):
        main(RemoveValueHeadConfig(), {"actor_critic": tmp_path / "saved", "model": base}, tmp_path / "output")


def test_the_checkpoint_is_not_touched(tmp_path):
    checkpoint(tmp_path / "saved", trl_sharded)
    before = {path.name: path.read_bytes() for path in (tmp_path / "saved").iterdir()}
    main(RemoveValueHeadConfig(), {"actor_critic": tmp_path / "saved"}, tmp_path / "output")
    assert {path.name: path.read_bytes() for path in (tmp_path / "saved").iterdir()} == before
    shutil.rmtree(tmp_path / "saved")
    assert torch.isfinite(AutoModelForCausalLM.from_pretrained(tmp_path / "output")(IDS).logits).all()
