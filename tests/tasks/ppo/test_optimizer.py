import copy
import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from tasks.ppo.config import PPOConfig
from tasks.ppo.optimizer import Optimizer, lr_factor
from tasks.processes import Processes


def config(**options: Any) -> PPOConfig:
    """Ten optimizer steps, unless the options say otherwise."""
    settings = {"total_episodes": 20, "batch_size": 2, "num_ppo_epochs": 1, "warmup_ratio": 0.0}
    return PPOConfig(**{**settings, **options})


def two_parts() -> dict[str, dict[str, nn.Parameter]]:
    torch.manual_seed(0)
    policy = {"weight": nn.Parameter(torch.randn(2, 3)), "bias": nn.Parameter(torch.randn(3))}
    return {"policy": policy, "value": {"weight": nn.Parameter(torch.randn(4))}}


def push(trainable: dict[str, dict[str, nn.Parameter]], scale: float = 1.0) -> None:
    for parameters in trainable.values():
        for parameter in parameters.values():
            (scale * parameter.square().sum()).backward()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"lr_schedule": "constant"}, [1.0] * 10),
        ({"lr_schedule": "linear"}, [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]),
        ({"lr_schedule": "linear", "warmup_ratio": 0.2}, [0.5, 1.0, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]),
        ({"lr_schedule": "cosine"}, [(1 + math.cos(math.pi * step / 10)) / 2 for step in range(10)]),
    ],
)
def test_learning_rates_follow_their_schedule(options, expected) -> None:
    assert [lr_factor(step, config(**options)) for step in range(10)] == pytest.approx(expected)


def test_a_step_is_that_of_adamw_on_gradients_clipped_for_each_part() -> None:
    options = config(learning_rate=0.1, value_learning_rate=0.02, max_grad_norm=0.5, lr_schedule="linear")
    ours, theirs = two_parts(), two_parts()
    optimizer = Optimizer(ours, options, Processes())
    groups = [
        {"params": list(theirs["policy"].values()), "lr": 0.1},
        {"params": list(theirs["value"].values()), "lr": 0.02},
    ]
    adamw = torch.optim.AdamW(groups, weight_decay=0.0)
    for step in range(3):
        push(ours, scale=10.0 ** (step - 1))  # the first value gradient may stay below the limit, later ones do not
        push(theirs, scale=10.0 ** (step - 1))
        norms = [nn.utils.clip_grad_norm_(group["params"], 0.5) for group in groups]
        for group, peak in zip(adamw.param_groups, (0.1, 0.02), strict=True):
            group["lr"] = peak * (1 - step / 10)
        assert_close(optimizer.step(step), torch.stack(norms))
        adamw.step()
        adamw.zero_grad()
        for part in ours:
            assert_close(dict(ours[part]), dict(theirs[part]))
        assert not optimizer.gradient.any()


def test_a_restored_optimizer_goes_on_with_the_same_bits() -> None:
    undisturbed = two_parts()
    optimizer = Optimizer(undisturbed, config(learning_rate=0.1), Processes())
    for step in range(2):
        push(undisturbed)
        optimizer.step(step)
    state = copy.deepcopy(optimizer.state())
    other = two_parts()
    resumed = Optimizer(other, config(learning_rate=0.1), Processes())
    resumed.load_state(state)
    for trainable, each in ((undisturbed, optimizer), (other, resumed)):
        push(trainable)
        each.step(2)
    assert all(torch.equal(tensor, resumed.state()[name]) for name, tensor in optimizer.state().items())
    assert len(state) == 3 * 4
