"""How far a run has come, and everything a resume needs.

Randomness is a function of the seed and the counters, so beside parameters, Adam's moments and the averaged reference
only what is in Progress is kept: a resumed run continues with the bits of an undisturbed one.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from pydantic import TypeAdapter
from torch import Tensor

from tasks.actor_critic.optimizer import Optimizer
from tasks.checkpoints import read_state, read_tensors, remove_old_checkpoints, save_checkpoint
from tasks.errors import InputError
from tasks.guard.history import Checkpoint, History
from tasks.ppo.config import PPOConfig
from tasks.ppo.objective import Moments
from tasks.ppo.rollout import Run

AVERAGE = "average."  # before the names of the reference's averages in a checkpoint
LOGS = ("metrics.jsonl", "samples.jsonl")
FREE_TO_CHANGE = {"checkpoint_every", "keep_checkpoints", "micro_batch_tokens", "rollout_batch_size", "trackers"}


@dataclass(frozen=True)
class Progress:
    """How far a run has come."""

    num_processes: int
    kl_coef: float
    iteration: int = 0  # iterations finished
    is_over: bool = False  # that was the last
    moments: Moments = field(default_factory=Moments)  # of the scores so far
    best_iteration: int | None = None
    best_value: float | None = None  # of best_metric
    num_tokens: int = 0  # sampled in all iterations
    seconds: dict[str, float] = field(default_factory=dict)  # by phase
    history: History = field(default_factory=History)  # of the guard

    def after_phases(self, seconds: Mapping[str, float]) -> "Progress":
        """As far as before, with phases that took so long."""
        phases = {**self.seconds, **seconds}
        total = {phase: self.seconds.get(phase, 0.0) + seconds.get(phase, 0.0) for phase in phases}
        return replace(self, seconds=total)

    def after_evaluation(self, value: float) -> "Progress":
        """With this iteration as the best, if the value of best_metric is larger than any before."""
        best = -math.inf if self.best_value is None else self.best_value
        return replace(self, best_iteration=self.iteration, best_value=value) if value > best else self

    def after_checkpoint(self, config: PPOConfig) -> "Progress":
        """With a checkpoint here that the guard, if there is one, may go back to."""
        if config.guard is None:
            return self
        here = Checkpoint(self.iteration, self.best_iteration, self.kl_coef)
        return replace(self, history=self.history.after_checkpoint(here, config.guard.window))


def save_progress(output: Path, progress: Progress, tensors: Mapping[str, Tensor], config: PPOConfig) -> None:
    """Write a checkpoint, and remove those but the newest keep_checkpoints, the best and what the guard may want.

    Its state names under `needs` those that the result, or a way back, may come from: who copies it copies those too.
    """
    best = set() if progress.best_iteration is None else {progress.best_iteration}
    wanted = progress.history.needed | (best if config.use_best or config.guard else set())
    needs = sorted(wanted - {progress.iteration})
    state = {"config": config.model_dump(mode="json"), "progress": asdict(progress), "needs": needs}
    save_checkpoint(output, progress.iteration, tensors, state, LOGS)
    remove_old_checkpoints(output, config.keep_checkpoints, best | wanted)


def load_progress(folder: Path, config: PPOConfig) -> tuple[Progress, dict[str, Tensor]]:
    """What `save_progress` wrote; raises InputError, naming the options, if it is of another config."""
    state = read_state(folder)
    before, now = state["config"], config.model_dump(mode="json")
    keys = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    changed = [f"{key}: {before.get(key)!r} -> {now.get(key)!r}" for key in keys if key not in FREE_TO_CHANGE]
    if changed:
        raise InputError(
            f"{folder} was written with another config ({'; '.join(changed)}). "
            "Give the old options to resume it, or another --output to start anew."
        )
    return TypeAdapter(Progress).validate_python(state["progress"]), read_tensors(folder)


def tensors_of(run: Run, optimizer: Optimizer) -> dict[str, Tensor]:
    """What a checkpoint holds of the models."""
    return optimizer.state() | {f"{AVERAGE}{name}": tensor for name, tensor in run.models.averages.items()}


def take_over(run: Run, optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Make the models what `tensors_of` gave."""
    optimizer.load_state(tensors)
    averages = {name.removeprefix(AVERAGE): tensor for name, tensor in tensors.items() if name.startswith(AVERAGE)}
    run.models.load_averages(averages)
