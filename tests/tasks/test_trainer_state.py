"""The state of a trainer comes back from safetensors as it was."""

import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from tasks.errors import InputError
from tasks.trainer_state import PickleFreeTrainer, load_state, save_state


def test_nested_values_come_back(tmp_path: Path) -> None:
    state = {"a": {0: {"step": torch.tensor(3.0), "m": torch.arange(4)}}, "b": [1, None, 0.1, (True, "x")], "c": {}}
    save_state(tmp_path / "state.safetensors", state)
    found = load_state(tmp_path / "state.safetensors")
    assert found["a"][0]["step"] == 3.0
    assert torch.equal(found["a"][0]["m"], torch.arange(4))
    assert found["b"] == [1, None, 0.1, [True, "x"]]
    assert found["c"] == {}


def test_a_state_without_tensors_comes_back(tmp_path: Path) -> None:
    save_state(tmp_path / "state.safetensors", {"last_epoch": 3, "_last_lr": [1e-3]})
    assert load_state(tmp_path / "state.safetensors") == {"last_epoch": 3, "_last_lr": [1e-3]}


def test_a_missing_state_says_what_to_delete(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"Delete {tmp_path}; the stage goes on from an earlier one"):
        load_state(tmp_path / "optimizer.safetensors")


def stepped(steps: int, optimizer: torch.optim.Optimizer, weight: nn.Parameter) -> list[float]:
    for step in range(steps):
        weight.grad = torch.full_like(weight, 1.0 + step)
        optimizer.step()
    return weight.tolist()


def test_an_optimizer_goes_on_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    weights = [nn.Parameter(torch.ones(3)) for _ in range(2)]
    first, second = (torch.optim.AdamW([weight], lr=0.1, fused=True) for weight in weights)
    stepped(2, first, weights[0])
    save_state(tmp_path / "state", first.state_dict())
    with torch.no_grad():
        weights[1].copy_(weights[0])
    second.load_state_dict(load_state(tmp_path / "state"))
    assert stepped(3, second, weights[1]) == stepped(3, first, weights[0])


def drawn() -> tuple[float, float, float]:
    return random.random(), float(np.random.default_rng(np.random.randint(2**31)).random()), torch.rand(1).item()


@pytest.mark.parametrize("world_size", [1, 2])
def test_random_numbers_go_on_as_if_nothing_had_stopped(world_size: int, tmp_path: Path) -> None:
    trainer = SimpleNamespace(args=SimpleNamespace(world_size=world_size, process_index=1))
    trainer._rng_file = lambda folder: PickleFreeTrainer._rng_file(trainer, folder)
    PickleFreeTrainer._save_rng_state(trainer, str(tmp_path))
    expected = drawn()
    assert drawn() != expected
    PickleFreeTrainer._load_rng_state(trainer, str(tmp_path))
    assert drawn() == expected
    PickleFreeTrainer._load_rng_state(trainer, str(tmp_path / "of_other_processes"))
    assert drawn() != expected
    assert [path.name for path in tmp_path.iterdir()] == [f"rng_state{'_1' if world_size > 1 else ''}.safetensors"]
