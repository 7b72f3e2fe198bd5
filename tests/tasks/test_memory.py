from dataclasses import replace

import pytest
import torch

from tasks import memory
from tasks.config import LoraConfig
from tasks.errors import InputError
from tasks.memory import (
    ModelFootprint,
    TunedModel,
    free_bytes,
    frozen,
    gib,
    memory_plan,
    num_cached,
    num_weights,
    require_memory,
    weight_shapes,
)
from tasks.models.adapters import adapter_parameters, add_lora
from tasks.models.modeling import backbone
from tasks.models.tuning import enable_gradient_checkpointing, trainable_parameters
from tests.tasks.ppo.tiny import make_model, write_policy
from tests.tasks.tiny_models import write_model

LORA = LoraConfig(r=2)
GPU = torch.device("cuda")
PLAN = {"weights": 3 * 2**30, "gradients and optimizer": 2**30, "activations": 5 * 2**30, "KV cache": 4 * 2**30}
REMEDIES = {name: f"Lower the {name}." for name in PLAN}


def count(parameters) -> int:
    return sum(parameter.numel() for parameter in parameters)


def kept_bytes(model, ids) -> int:
    """Of the tensors that autograd keeps for the backward of the transformer, weights left out."""
    kept = {}
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        _hold = backbone(model)(input_ids=ids, use_cache=False).last_hidden_state
    return sum(size for pointer, size in kept.items() if pointer not in weights)


def test_weights_are_counted_from_the_files_headers(tmp_path) -> None:
    shapes = weight_shapes(write_policy(tmp_path))
    assert num_weights(shapes) == count(make_model().parameters())
    assert frozen(tmp_path, "bfloat16").weight_bytes == 2 * num_weights(shapes)
    assert frozen(tmp_path, "bfloat16").training_bytes == 0


def test_a_trained_number_has_gradient_and_moments_and_a_float32_copy_if_it_is_narrower() -> None:
    in_float32, in_bfloat16 = ModelFootprint(10, 10), ModelFootprint(10, 10, 16)
    assert (in_float32.weight_bytes, in_float32.training_bytes) == (10 * 4, 10 * (4 + 4 + 4))
    assert (in_bfloat16.weight_bytes, in_bfloat16.training_bytes) == (10 * 2, 10 * (4 + 4 + 4 + 4))


@pytest.mark.parametrize("layers", [None, 1, 2])
@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"target_modules": ["q_proj", "down_proj"]}])
def test_an_adapter_is_counted_as_it_is_made(tmp_path, options, layers) -> None:
    lora = LoraConfig(r=3, **options)
    adapted = add_lora(make_model(intermediate_size=32), lora, ["x"], layers)
    write_model(tmp_path, vocab_size=24, hidden_size=32, intermediate_size=32)
    model = TunedModel(tmp_path, "bfloat16", "lora", lora, layers)
    assert model.adapter().num_trained == count(adapter_parameters(adapted, "x").values())
    assert model.adapter(trained=False).training_bytes == 0
    assert model.adapter().weight_bytes == 4 * model.adapter().num_weights
    assert model.base().num_trained == 0


@pytest.mark.parametrize(("tuning", "layers"), [("full", None), ("freeze", 1), ("freeze", 2)])
def test_trained_weights_are_counted_as_they_are_chosen(tmp_path, tuning, layers) -> None:
    model = TunedModel(write_policy(tmp_path), "float32", tuning, LORA, layers)
    assert model.base().num_trained == count(trainable_parameters(make_model(), tuning, layers).values())
    assert model.base().num_weights == count(make_model().parameters())


def test_four_bits_are_counted_for_linear_layers_with_their_scales(tmp_path) -> None:
    write_model(tmp_path, vocab_size=19, hidden_size=64, intermediate_size=128)
    num_linear, num_other = 2 * (4 * 64 * 64 + 3 * 64 * 128), 2 * 19 * 64 + 5 * 64
    # a block of 64 has an 8-bit scale, and 256 of these share 4 bytes
    expected = num_linear / 2 + num_linear / 64 + 4 * num_linear / (64 * 256) + 2 * num_other
    assert TunedModel(tmp_path, "bfloat16", "qlora", LORA).base().weight_bytes == pytest.approx(expected, abs=1)


def test_the_cache_is_counted_whole(tmp_path) -> None:
    model = make_model(num_key_value_heads=1)
    cache = model(torch.tensor([[3, 4, 5]] * 2)).past_key_values
    held = sum(layer.keys.numel() + layer.values.numel() for layer in cache.layers)
    assert num_cached(model.config.to_dict(), num_tokens=6) == held
    write_policy(tmp_path)
    small, large = (TunedModel(tmp_path, dtype, "lora", LORA).cache_bytes(6, 0) for dtype in ("bfloat16", "float32"))
    assert large == 2 * small == 4 * 2 * held  # of 4 bytes, twice the heads


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("tuning", ["full", "freeze", "lora", "dora"])
def test_the_estimate_of_activations_is_near_what_autograd_keeps(tmp_path, tuning, dtype) -> None:
    options = {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 6}
    write_model(tmp_path, vocab_size=24, **options)
    lora, layers = LoraConfig(r=2, use_dora=tuning == "dora"), 3 if tuning == "freeze" else None
    tuned = TunedModel(tmp_path, dtype, "lora" if tuning == "dora" else tuning, lora, layers)
    model = make_model(**options).to(getattr(torch, dtype))
    if tuned.tuning == "lora":
        model = add_lora(model, lora, ["x"]).eval()
    else:
        trainable_parameters(model, tuned.tuning, layers)
    ids, num_layers = torch.randint(3, 24, (4, 60)), layers or 6
    kept = kept_bytes(model, ids)
    one_layer = kept / num_layers
    assert 0.75 < tuned.activation_bytes(240, 0, GPU) / (kept + one_layer) < 1.35  # the gradients of one layer
    enable_gradient_checkpointing(model)
    checkpointed = replace(tuned, gradient_checkpointing=True).activation_bytes(240, 0, GPU)
    assert 0.75 < checkpointed / (kept_bytes(model, ids) + 2 * one_layer) < 1.35  # and the layer that is run again


def test_logits_count_where_they_take_more_than_a_layer(tmp_path) -> None:
    write_model(tmp_path, vocab_size=1000)
    model = TunedModel(tmp_path, "bfloat16", "freeze", LORA, 1)
    layer = model.activation_bytes(50, 0, GPU) // 2  # what it keeps, and the gradients on their way
    assert model.activation_bytes(50, 1, GPU) == 2 * layer
    assert model.activation_bytes(50, 50, GPU) == layer + 50 * 1000 * 3 * 4


def test_a_prompt_on_its_way_counts_beside_the_cache(tmp_path) -> None:
    model = TunedModel(write_policy(tmp_path), "float32", "freeze", LORA, 1)
    assert model.cache_bytes(60, 50) - model.cache_bytes(60, 0) == model.activation_bytes(50, 0, GPU) // 2


def test_states_of_frozen_lower_layers_are_counted(tmp_path) -> None:
    write_policy(tmp_path)  # two layers, 32 numbers wide
    numbers = {
        layers: TunedModel(tmp_path, "bfloat16", "lora", LORA, layers).state_bytes(10) for layers in (None, 1, 2)
    }
    assert numbers == {None: 0, 1: 10 * 32 * 2, 2: 0}


def test_a_cpu_needs_more_for_the_same_activations(tmp_path) -> None:
    write_policy(tmp_path)
    for dtype, growth in (("float32", 3.0), ("bfloat16", 1.7)):
        model = TunedModel(tmp_path, dtype, "lora", LORA)
        on_gpu, on_cpu = (model.activation_bytes(50, 50, device) for device in (GPU, torch.device("cpu")))
        assert on_cpu == pytest.approx(growth * on_gpu)


def test_the_plan_adds_up_the_models() -> None:
    plan = memory_plan([ModelFootprint(100, 0, 16), ModelFootprint(10, 10)], activations=7, cache=8)
    assert plan == {"weights": 240, "gradients and optimizer": 120, "activations": 7, "KV cache": 8}


def test_a_run_that_fits_is_told_and_one_that_does_not_is_refused_with_arithmetic_and_remedy(capsys) -> None:
    require_memory(PLAN, 9 * 2**30, REMEDIES)
    arithmetic = (
        "weights 3.00 GiB + gradients and optimizer 1.00 GiB + the larger of activations 5.00 GiB "
        "and KV cache 4.00 GiB = 9.00 GiB"
    )
    assert capsys.readouterr().out == f"memory per process: {arithmetic}; 9.00 GiB free\n"
    with pytest.raises(InputError) as refusal:
        require_memory(PLAN, 9 * 2**30 - 1, REMEDIES)
    assert str(refusal.value) == f"Each process needs {arithmetic}, and 9.00 GiB is free. Lower the activations."


def test_free_memory_is_within_the_container_limit_and_shared(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    unlimited = free_bytes(torch.device("cpu"))
    (tmp_path / "memory.current").write_text("600\n")
    (tmp_path / "memory.max").write_text("1000\n")
    assert free_bytes(torch.device("cpu")) == 400
    assert free_bytes(torch.device("cpu"), 4) == 100
    (tmp_path / "memory.max").write_text("max\n")
    assert free_bytes(torch.device("cpu")) > unlimited / 2 > 2**20
    assert gib(3 * 2**29) == "1.50 GiB"
