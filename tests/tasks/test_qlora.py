"""A base in 4 bits: what is kept of it, that gradients are right after a rollout, that adapters merge elsewhere."""

import pytest
import torch

from tasks.config import LoraConfig, SamplingConfig
from tasks.errors import InputError
from tasks.generation import generate, uniform_numbers
from tasks.merge_lora.config import MergeLoraConfig
from tasks.merge_lora.run import main as merge_lora
from tasks.models.adapters import (
    adapter_parameters,
    add_lora,
    load_adapter,
    load_merged,
    lora_layers,
    save_adapter,
    set_trainable,
    use_adapter,
)
from tasks.models.model_files import read_json
from tasks.models.modeling import load_causal_lm
from tasks.models.tuning import enable_gradient_checkpointing, load_for_training
from tests.tasks.tiny_models import EOS_ID, PAD_ID, make_tokenizer, write_model

bitsandbytes = pytest.importorskip("bitsandbytes", reason="the extra `qlora` is not installed")

IDS = torch.tensor([[3, 5, 7, 9, 11]])
LORA, DORA = LoraConfig(r=2), LoraConfig(r=2, use_dora=True)
DTYPES = ["float32", "bfloat16"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("base"), hidden_size=64, intermediate_size=128, initializer_range=0.1)


def with_adapters(base, config=LORA, dtype="float32"):
    torch.manual_seed(2)
    model = add_lora(load_for_training(base, dtype, "qlora").to("cpu"), config, ["policy", "value"]).eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    use_adapter(lora_layers(model), "policy")
    return model


def policy_gradient(model):
    model(IDS, labels=IDS).loss.backward()
    return torch.cat([parameter.grad.flatten() for parameter in adapter_parameters(model, "policy").values()])


def dequantized(layer):
    return bitsandbytes.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)


def test_every_linear_layer_but_the_head_is_kept_in_four_bits(base):
    model, original = load_for_training(base, "float32", "qlora"), load_causal_lm(base)
    names = {name for name, module in model.named_modules() if isinstance(module, bitsandbytes.nn.Linear4bit)}
    assert len(names) == 2 * 7
    assert "lm_head" not in names
    assert not model.training
    for name in names:
        weight, kept = original.get_submodule(name).weight, model.get_submodule(name).weight
        assert kept.nbytes == weight.numel() / 2
        assert kept.quant_state.absmax.nbytes == weight.numel() / 64  # one byte a block: the scales are quantized too
        # half the widest gap between neighbouring NF4 values, times the block's largest weight
        assert (dequantized(model.get_submodule(name)) - weight).abs().max() <= 0.16 * weight.abs().max()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("config", [LORA, DORA])
def test_training_changes_every_tensor_of_the_adapter_and_no_other(base, config, dtype):
    model = with_adapters(base, config, dtype)
    set_trainable(model, ["policy"])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model(IDS, labels=IDS).loss.backward()
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1).step()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == set(adapter_parameters(model, "policy"))
    assert len(changed) == 2 * 7 * (3 if config.use_dora else 2)


@pytest.mark.parametrize("config", [LORA, DORA])
def test_a_fresh_adapter_changes_nothing(base, config):
    expected = load_for_training(base, "bfloat16", "qlora")(IDS).logits
    model = add_lora(load_for_training(base, "bfloat16", "qlora"), config, ["policy"]).eval()
    assert torch.equal(model(IDS).logits, expected)


def test_a_rollout_changes_neither_logits_nor_gradients(base):
    expected = policy_gradient(with_adapters(base))
    model = with_adapters(base)
    with torch.no_grad():
        without_gradient = model(IDS).logits
    assert torch.equal(without_gradient, model(IDS).logits)
    assert torch.equal(policy_gradient(model), expected)


@pytest.mark.skipif(not bitsandbytes.functional.has_avx512bf16(), reason="only CPUs with bfloat16 pack the weights")
@pytest.mark.filterwarnings("ignore:.*autograd kernel was not registered")
def test_a_rollout_would_change_the_gradients_if_the_weights_were_packed(base):
    expected = policy_gradient(with_adapters(base))
    model = with_adapters(base)
    for module in model.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = True
    with torch.no_grad():
        model(IDS)
    assert (policy_gradient(model) - expected).norm() > 0.1 * expected.norm()


def test_checkpointing_changes_no_gradient(base):
    model = with_adapters(base)
    enable_gradient_checkpointing(model)
    assert torch.equal(policy_gradient(model), policy_gradient(with_adapters(base)))


@pytest.mark.skipif(torch.cuda.is_available(), reason="wrong on CPUs only")
def test_rows_that_a_cpu_would_read_wrongly_are_refused(tmp_path):
    write_model(tmp_path, hidden_size=64, intermediate_size=96)
    with pytest.raises(InputError, match=r"down_proj has 96 inputs.*multiple of 64"):
        load_for_training(tmp_path, "float32", "qlora")


def test_a_response_is_generated(base):
    model = with_adapters(base).get_base_model()
    options = {"uniforms": uniform_numbers(2, 4, 0), "stop_ids": [EOS_ID], "pad_token_id": PAD_ID}
    responses = generate(model, [[3, 5], [4]], SamplingConfig(response_length=4, min_new_tokens=4), **options)
    assert responses.mask.all()
    assert responses.logprobs.isfinite().all()


@pytest.mark.parametrize("config", [LORA, DORA])
def test_an_adapter_trained_on_four_bits_is_merged_into_the_full_base(base, tmp_path, config):
    save_adapter(tmp_path / "adapter", with_adapters(base, config), "policy", make_tokenizer())
    again = load_adapter(load_for_training(base, "float32", "qlora"), tmp_path / "adapter", "x").eval()
    assert torch.equal(again(IDS).logits, with_adapters(base, config)(IDS).logits)
    merge_lora(MergeLoraConfig(), {"adapter": tmp_path / "adapter", "model": base}, tmp_path / "merged")
    assert "quantization_config" not in read_json(tmp_path / "merged" / "config.json")
    expected = load_merged(base, tmp_path / "adapter")(IDS).logits
    torch.testing.assert_close(load_causal_lm(tmp_path / "merged")(IDS).logits, expected, rtol=1e-4, atol=1e-4)
