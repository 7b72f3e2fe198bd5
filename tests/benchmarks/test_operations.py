"""The formulas' operations, against those that torch counts in models of the same shape."""

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.benchmarks.operations import matrix_rate, operations
from tests.benchmarks.workloads import Workload, make_classifier, make_policy, make_prompts

LENGTH = 10
WORKLOAD = Workload("test", 32, 48, 4, 4, 2, vocab_size=50, response_length=LENGTH, batch_size=4)


def counted(trunk: Any, head: Any = None, backward: bool = False) -> int:
    """Products with weights in one pass over an iteration's tokens, and in the head at those of the responses."""
    num_predicted = WORKLOAD.batch_size * LENGTH
    num_tokens = sum(map(len, make_prompts(WORKLOAD))) + num_predicted
    with FlopCounterMode(display=False) as counter:
        hidden = trunk(torch.arange(num_tokens)[None] % WORKLOAD.vocab_size).last_hidden_state
        result = hidden.sum() if head is None else head(hidden[0, :num_predicted]).sum()
        if backward:
            result.backward()
    return int(counter.get_flop_counts()["Global"][torch.ops.aten.mm])


def test_full_tuning_of_two_models_takes_what_torch_counts() -> None:
    policy, value = make_policy(WORKLOAD), make_classifier(WORKLOAD, seed=1)
    found = operations(WORKLOAD, "separate", LENGTH)
    assert found["rollout"] == counted(policy.model, policy.lm_head)
    assert found["measure"] == counted(policy.model, policy.lm_head) + 2 * counted(value.model)
    epoch = counted(policy.model, policy.lm_head, backward=True) + counted(value.model, backward=True)
    assert found["update"] == WORKLOAD.num_ppo_epochs * epoch


def test_a_frozen_base_takes_no_gradients_of_weights_and_kept_states_a_quarter_of_the_layers() -> None:
    policy = make_policy(WORKLOAD)
    policy.requires_grad_(False)
    policy.enable_input_require_grads()  # as adapters in the first layer do
    trunk, whole = (counted(policy.model, head, backward=True) for head in (None, policy.lm_head))
    found = operations(WORKLOAD, "shared", LENGTH)["update"]
    assert found == WORKLOAD.num_ppo_epochs * whole
    upper = operations(WORKLOAD, "cached", LENGTH)["update"]
    assert found - upper == pytest.approx(WORKLOAD.num_ppo_epochs * trunk * 3 / 4)


def test_the_machines_rate_leaves_torchs_settings_as_they_were() -> None:
    before = torch.get_num_threads(), torch.get_float32_matmul_precision()
    assert 1e9 < matrix_rate(1, "highest") < 1e14
    assert (torch.get_num_threads(), torch.get_float32_matmul_precision()) == before
