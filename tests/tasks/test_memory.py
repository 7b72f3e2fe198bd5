import torch

from tasks import memory
from tasks.memory import free_bytes, gib, num_activations, num_cached, num_lora_weights, num_weights, weight_shapes
from tests.tasks.ppo.tiny import make_model, write_policy


def test_weights_are_counted_from_the_files_headers(tmp_path) -> None:
    model = make_model()
    shapes = weight_shapes(write_policy(tmp_path))
    assert num_weights(shapes) == sum(parameter.numel() for parameter in model.parameters())
    # two layers at rank 2: four matrices of 32 + 32 and three of 32 + 64
    assert num_lora_weights(shapes, 2, vocabulary_size=24) == 2 * 2 * (4 * 64 + 3 * 96)


def test_the_cache_is_counted_as_it_grows() -> None:
    model = make_model(num_key_value_heads=1)
    cache = model(torch.tensor([[3, 4, 5]] * 2)).past_key_values
    held = sum(layer.keys.numel() + layer.values.numel() for layer in cache.layers)
    assert num_cached(model.config.to_dict(), num_tokens=6) == held


def test_the_estimate_of_activations_is_near_what_autograd_keeps() -> None:
    model, kept = make_model(hidden_size=64, intermediate_size=128), {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes() // 4
        return tensor

    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(torch.randint(3, 24, (4, 60)), use_cache=False).logits.logsumexp(-1).sum()
    held = sum(size for pointer, size in kept.items() if pointer not in weights)
    assert loss.isfinite()
    assert 0.5 < num_activations(model.config.to_dict(), 240, 240) / held < 2


def test_free_memory_is_within_the_container_limit(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    unlimited = free_bytes(torch.device("cpu"))
    (tmp_path / "memory.current").write_text("600\n")
    (tmp_path / "memory.max").write_text("1000\n")
    assert free_bytes(torch.device("cpu")) == 400
    (tmp_path / "memory.max").write_text("max\n")
    assert free_bytes(torch.device("cpu")) > unlimited / 2 > 2**20
    assert gib(3 * 2**29) == "1.50 GiB"
