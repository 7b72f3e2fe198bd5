import torch
from torch.testing import assert_close
from transformers import DynamicCache

from tasks.models.kv_cache import reserved_cache
from tests.tasks.ppo.tiny import make_model

IDS = torch.tensor([[3, 9, 4, 17, 22, 5], [6, 8, 4, 3, 20, 7], [5, 5, 9, 10, 11, 12]])


@torch.no_grad()
def logits_of(model, cache) -> torch.Tensor:
    """Of a prompt of three tokens, then of one more, then of two more of the first and the last row."""
    parts = [IDS[:, :3], IDS[:, 3:4]]
    said = [model(input_ids=part, past_key_values=cache, use_cache=True).logits.flatten() for part in parts]
    cache.batch_select_indices(torch.tensor([0, 2]))
    said += [model(input_ids=IDS[[0, 2], 4:], past_key_values=cache, use_cache=True).logits.flatten()]
    return torch.cat(said)


def test_the_cache_holds_what_the_dynamic_one_does() -> None:
    model = make_model(num_key_value_heads=1)
    ours, theirs = reserved_cache(6), DynamicCache()
    assert_close(logits_of(model, ours), logits_of(model, theirs), rtol=0, atol=0)
    for layer, other in zip(ours.layers, theirs.layers, strict=True):
        assert_close((layer.keys, layer.values), (other.keys, other.values), rtol=0, atol=0)
    assert ours.get_seq_length() == 6


def test_a_new_token_copies_none_before_it() -> None:
    cache = reserved_cache(5)
    first, _ = cache.update(torch.ones(2, 1, 3, 4), torch.ones(2, 1, 3, 4), 0)
    both, _ = cache.update(torch.ones(2, 1, 2, 4), torch.ones(2, 1, 2, 4), 0)
    assert both.shape == (2, 1, 5, 4)
    assert both.data_ptr() == first.data_ptr()
