"""AdamW over one flat buffer against torch's own, worked examples, and bfloat16 against float32."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tasks.actor_critic.config import ActorCriticConfig
from tasks.actor_critic.optimizer import PARTS, Optimizer, lr_factor
from tasks.processes import Processes

DEVICE = Processes().device
Trainable = dict[str, dict[str, nn.Parameter]]
LINEAR = [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]
COSINE = [(1 + math.cos(math.pi * step / 10)) / 2 for step in range(10)]


def two_parts(dtype: torch.dtype = torch.float32) -> Trainable:
    torch.manual_seed(0)
    policy = {
        "weight": nn.Parameter(torch.randn(2, 3).to(DEVICE, dtype)),
        "bias": nn.Parameter(torch.randn(3).to(DEVICE, dtype)),
    }
    return {"policy": policy, "value": {"weight": nn.Parameter(torch.randn(4).to(DEVICE, dtype))}}


def one_weight_each(policy: list[float], value: list[float], dtype: torch.dtype = torch.float32) -> Trainable:
    weights = zip(PARTS, (policy, value), strict=True)
    return {
        part: {"weight": nn.Parameter(torch.tensor(weight, dtype=dtype, device=DEVICE))} for part, weight in weights
    }


def make_optimizer(trainable: Trainable, num_steps: int = 10, first_policy_step: int = 0, **options: Any) -> Optimizer:
    config = ActorCriticConfig(**{"warmup_ratio": 0.0, "lr_schedule": "constant", **options})
    return Optimizer(trainable, config, Processes(), num_steps=num_steps, first_policy_step=first_policy_step)


def push(trainable: Trainable, scale: float = 1.0) -> None:
    """Add the gradient of scale x the sum of squares of all weights."""
    for parameters in trainable.values():
        for parameter in parameters.values():
            (scale * parameter.square().sum()).backward()


def pull(parameter: nn.Parameter, gradient: list[float]) -> None:
    """Add this gradient."""
    (parameter * parameter.new_tensor(gradient)).sum().backward()


def assert_close(found: Any, expected: Any, **tolerances: float) -> None:
    torch.testing.assert_close(found, expected, check_device=False, **tolerances)


def values(trainable: Trainable) -> dict[str, Tensor]:
    return {
        f"{part}.{name}": parameter.detach().clone()
        for part, parameters in trainable.items()
        for name, parameter in parameters.items()
    }


@pytest.mark.parametrize(
    ("schedule", "warmup_ratio", "expected"),
    [
        ("constant", 0.0, [1.0] * 10),
        ("constant", 0.3, [1 / 3, 2 / 3, *[1.0] * 8]),
        ("linear", 0.0, LINEAR),
        ("linear", 0.2, [0.5, 1.0, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]),
        ("cosine", 0.0, COSINE),
        ("cosine", 0.5, [0.2, 0.4, 0.6, 0.8, 1.0, *COSINE[::2]]),
    ],
)
def test_learning_rates_follow_their_schedule(schedule: str, warmup_ratio: float, expected: list[float]) -> None:
    assert [lr_factor(step, 10, warmup_ratio, schedule) for step in range(10)] == pytest.approx(expected)


def test_a_run_that_is_all_warmup_has_a_rate_at_each_step() -> None:
    assert [lr_factor(step, 2, 0.9, "linear") for step in range(2)] == [0.5, 1.0]


@pytest.mark.parametrize(
    ("options", "policy", "value"),
    [
        ({"lr_schedule": "linear"}, LINEAR, LINEAR),
        ({"lr_schedule": "linear", "value_lr_schedule": "constant"}, LINEAR, [1.0] * 10),
        ({"value_lr_schedule": "cosine"}, [1.0] * 10, COSINE),
        ({"warmup_ratio": 0.2}, [0.5, *[1.0] * 9], [0.5, *[1.0] * 9]),
        ({"warmup_ratio": 0.2, "value_warmup_ratio": 0.0}, [0.5, *[1.0] * 9], [1.0] * 10),
        ({"value_warmup_ratio": 0.2}, [1.0] * 10, [0.5, *[1.0] * 9]),
        # After five steps of value model alone the policy's five steps fall from its own peak.
        ({"lr_schedule": "linear", "first_policy_step": 5}, [*[1.0] * 6, 0.8, 0.6, 0.4, 0.2], LINEAR),
        (
            {"warmup_ratio": 0.4, "value_warmup_ratio": 0.0, "first_policy_step": 5},
            [*[0.5] * 6, *[1.0] * 4],
            [1.0] * 10,
        ),
    ],
)
def test_policy_and_value_model_have_rates_schedules_and_warmups_of_their_own(
    options: dict[str, Any], policy: list[float], value: list[float]
) -> None:
    optimizer = make_optimizer(two_parts(), learning_rate=0.1, value_learning_rate=0.02, **options)
    found_policy, found_value = zip(*[optimizer.learning_rates(step) for step in range(10)], strict=True)
    assert found_policy == pytest.approx([0.1 * factor for factor in policy])
    assert found_value == pytest.approx([0.02 * factor for factor in value])


def test_a_scale_multiplies_both_rates_along_their_schedules() -> None:
    optimizer = make_optimizer(
        two_parts(), learning_rate=2.0, value_learning_rate=4.0, lr_schedule="linear", value_lr_schedule="cosine"
    )
    optimizer.rate_scale = 0.25
    policy, value = zip(*[optimizer.learning_rates(step) for step in range(10)], strict=True)
    assert policy == pytest.approx([0.5 * factor for factor in LINEAR])
    assert value == pytest.approx(COSINE)


def test_a_scale_shortens_the_steps_that_are_taken() -> None:
    moved = []
    for scale in (1.0, 0.25):
        trainable = one_weight_each([1.0], [1.0])
        optimizer = make_optimizer(trainable, learning_rate=0.1, value_learning_rate=0.2)
        optimizer.rate_scale = scale
        push(trainable)
        optimizer.step(0)
        moved.append([1 - values(trainable)[f"{part}.weight"].item() for part in PARTS])
    assert moved[0] == pytest.approx([0.1, 0.2], rel=1e-4)  # Adam's first step is the rate
    assert moved[1] == pytest.approx([0.025, 0.05], rel=1e-4)


def test_restored_to_its_start_it_has_no_moments() -> None:
    trainable = two_parts()
    optimizer = make_optimizer(trainable)
    start = {name: tensor.clone() for name, tensor in optimizer.state().items()}
    push(trainable, math.nan)
    optimizer.step(0)
    optimizer.load_state(start)
    assert optimizer.state().keys() == start.keys()
    for name, tensor in start.items():
        assert torch.equal(optimizer.state()[name], tensor)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"adam_beta1": 0.5},
        {"adam_beta2": 0.7},
        {"adam_epsilon": 0.1},
        {"weight_decay": 0.3},
        {"adam_beta1": 0.8, "adam_beta2": 0.95, "adam_epsilon": 1e-5, "weight_decay": 0.1},
    ],
)
def test_steps_are_those_of_torch_adamw_on_gradients_clipped_for_each_part(options: dict[str, float]) -> None:
    ours, theirs = two_parts(), two_parts()
    rates = {"learning_rate": 0.1, "value_learning_rate": 0.02, "lr_schedule": "linear", "max_grad_norm": 0.5}
    optimizer = make_optimizer(ours, **rates, **options)
    groups = [list(theirs[part].values()) for part in PARTS]
    betas = (options.get("adam_beta1", 0.9), options.get("adam_beta2", 0.999))
    decay, epsilon = options.get("weight_decay", 0.0), options.get("adam_epsilon", 1e-8)
    adamw = [torch.optim.AdamW(group, betas=betas, eps=epsilon, weight_decay=decay, fused=False) for group in groups]
    for step in range(4):
        push(ours, scale=10.0 ** (step - 1))  # the first value gradient may stay below the limit, later ones do not
        push(theirs, scale=10.0 ** (step - 1))
        norms = [nn.utils.clip_grad_norm_(group, 0.5) for group in groups]
        assert_close(optimizer.step(step), torch.stack(norms))
        for each, peak in zip(adamw, (0.1, 0.02), strict=True):
            each.param_groups[0]["lr"] = peak * (1 - step / 10)
            each.step()
            each.zero_grad()
        assert_close(values(ours), values(theirs))
        assert not optimizer.gradient.any()


def test_a_gradient_longer_than_the_limit_is_shortened_and_the_other_parts_left_alone() -> None:
    trainable = one_weight_each(policy=[1.0, 1.0], value=[1.0, 1.0])
    optimizer = make_optimizer(trainable, max_grad_norm=1.0, adam_beta1=0.5)
    pull(trainable["policy"]["weight"], [3.0, 4.0])
    pull(trainable["value"]["weight"], [0.0, 0.5])
    assert_close(optimizer.step(0), torch.tensor([5.0, 0.5]))
    # Adam's first mean of gradients is (1 - beta1) times what it was given: half of (3, 4) / 5 and of (0, 0.5)
    state = optimizer.state()
    assert_close(state["exp_avg.policy.weight"], torch.tensor([0.3, 0.4]))
    assert_close(state["exp_avg.value.weight"], torch.tensor([0.0, 0.25]))


def test_the_gradients_of_all_processes_are_summed_before_they_are_clipped(monkeypatch: pytest.MonkeyPatch) -> None:
    trainable = one_weight_each(policy=[1.0], value=[1.0])
    optimizer = make_optimizer(trainable, max_grad_norm=8.0, adam_beta1=0.5)
    monkeypatch.setattr(optimizer.processes, "sum_in_place", lambda tensor: tensor.mul_(3))  # three that agree
    pull(trainable["policy"]["weight"], [4.0])
    pull(trainable["value"]["weight"], [1.0])
    assert_close(optimizer.step(0), torch.tensor([12.0, 3.0]))
    assert_close(optimizer.state()["exp_avg.policy.weight"], torch.tensor([4.0]))  # half of 8
    assert_close(optimizer.state()["exp_avg.value.weight"], torch.tensor([1.5]))


@pytest.mark.parametrize(("stepped", "waiting"), [("value", "policy"), ("policy", "value")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_the_parts_asked_for_are_stepped(stepped: str, waiting: str, dtype: torch.dtype) -> None:
    trainable = two_parts(dtype)
    optimizer = make_optimizer(trainable, learning_rate=0.1, value_learning_rate=0.1, weight_decay=0.1)
    before = values(trainable)
    for step in range(3):
        push(trainable)
        norms = optimizer.step(step, [stepped])
        assert norms.min() > 0  # both are told
        assert not optimizer.gradient.any()
    for name, value in values(trainable).items():
        assert torch.equal(value, before[name]) == name.startswith(waiting)
    moments = [name for name in optimizer.state() if not name.startswith("parameter.")]
    assert moments
    assert not any(f".{waiting}." in name for name in moments)


def test_a_part_that_waited_starts_with_the_first_step_of_adam() -> None:
    trainable = one_weight_each(policy=[1.0], value=[1.0])
    optimizer = make_optimizer(trainable, learning_rate=0.1, first_policy_step=2, lr_schedule="linear")
    for step, parts in enumerate([["value"], ["value"], PARTS]):
        pull(trainable["policy"]["weight"], [0.5])
        pull(trainable["value"]["weight"], [0.5])
        optimizer.step(step, parts)
    assert_close(trainable["policy"]["weight"].detach(), torch.tensor([0.9]))  # bias-corrected: the rate, whole
    assert optimizer.state()["step.policy.weight"].item() == 1
    assert optimizer.state()["step.value.weight"].item() == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_was_cleared_is_not_stepped(dtype: torch.dtype) -> None:
    trainable = one_weight_each(policy=[1.0], value=[1.0], dtype=dtype)
    optimizer = make_optimizer(trainable, adam_beta1=0.5)
    pull(trainable["policy"]["weight"], [100.0])
    optimizer.clear()
    pull(trainable["policy"]["weight"], [0.5])
    optimizer.step(0)
    assert_close(optimizer.state()["exp_avg.policy.weight"], torch.tensor([0.25]))


def test_gradients_of_bfloat16_parameters_are_added_up_in_float32() -> None:
    trainable = one_weight_each(policy=[1.0], value=[1.0], dtype=torch.bfloat16)
    optimizer = make_optimizer(trainable)
    pull(trainable["policy"]["weight"], [1.0])
    for _ in range(64):
        pull(trainable["policy"]["weight"], [2.0**-9])  # in bfloat16 1 + 2^-9 is 1
    assert optimizer.gradient.dtype == torch.float32
    assert optimizer.gradient.tolist() == [1.125, 0.0]
    assert trainable["policy"]["weight"].grad is None


def test_steps_far_below_what_bfloat16_can_hold_add_up_as_in_float32() -> None:
    half, whole = (one_weight_each(policy=[1.0, -3.0], value=[2.0], dtype=d) for d in (torch.bfloat16, torch.float32))
    rates = {"learning_rate": 1e-4, "value_learning_rate": 1e-4, "num_steps": 100}
    optimizers = [make_optimizer(trainable, **rates) for trainable in (half, whole)]
    for step in range(100):
        for trainable, optimizer in zip((half, whole), optimizers, strict=True):
            pull(trainable["policy"]["weight"], [0.5, -0.25])
            pull(trainable["value"]["weight"], [0.125])
            optimizer.step(step)
    # each step of a constant gradient is the rate: 100 of 1e-4, where bfloat16's neighbours of 1 are 4e-3 away
    assert_close(values(whole)["policy.weight"], torch.tensor([0.99, -2.99]), rtol=0, atol=1e-4)
    for name, weight in values(half).items():
        assert weight.dtype == torch.bfloat16
        assert torch.equal(optimizers[0].state()[f"parameter.{name}"], values(whole)[name])
        assert torch.equal(weight, values(whole)[name].bfloat16())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("parts", [PARTS, ("value",)])
def test_a_restored_optimizer_goes_on_with_the_same_bits(dtype: torch.dtype, parts: tuple[str, ...]) -> None:
    undisturbed, other = two_parts(dtype), two_parts(dtype)
    options = {"learning_rate": 1e-3, "value_learning_rate": 1e-3}
    optimizer, resumed = make_optimizer(undisturbed, **options), make_optimizer(other, **options)
    for step in range(3):
        push(undisturbed)
        optimizer.step(step, parts)
    state = copy.deepcopy(optimizer.state())
    assert len(state) == 3 + 3 * (3 if parts == PARTS else 1)
    resumed.load_state(state)
    assert all(torch.equal(value, values(undisturbed)[name]) for name, value in values(other).items())
    for trainable, each in ((undisturbed, optimizer), (other, resumed)):
        push(trainable)
        each.step(3)
    assert all(torch.equal(tensor, resumed.state()[name]) for name, tensor in optimizer.state().items())
    assert all(torch.equal(value, values(undisturbed)[name]) for name, value in values(other).items())
    if dtype == torch.bfloat16:
        kept = state["parameter.value.weight"]
        assert not torch.equal(kept, kept.bfloat16().float())  # the bits beyond bfloat16 were restored too
