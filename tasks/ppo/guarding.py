"""The guard's place in PPO: what it is shown of an iteration, and the way back to a good checkpoint."""

import math
from dataclasses import replace
from pathlib import Path

from torch.nn.utils import get_total_norm

from tasks.actor_critic.optimizer import Optimizer
from tasks.checkpoints import checkpoint_folder
from tasks.guard.config import GuardConfig
from tasks.guard.history import Rewind
from tasks.guard.report import as_line
from tasks.guard.rewind import missing_checkpoint, plan_rewind
from tasks.guard.watch import find_alarms, record_of, text_metrics
from tasks.ppo.checkpoint import Progress, load_progress, take_over
from tasks.ppo.rollout import Rollout, Run


def guard_metrics(run: Run, guard: GuardConfig, optimizer: Optimizer, rollout: Rollout) -> dict[str, float]:
    """What only the guard asks for: how the responses repeat, the second signals' spreads, the weights' norm."""
    lengths = (rollout.mask.sum(dim=1) - rollout.ended.long()).tolist()  # without the end
    responses = [row[:length] for row, length in zip(rollout.response_ids.tolist(), lengths, strict=True)]
    scores = {name: rollout.scores_by_reward[name] for name in guard.second_signals(run.config.rewards)}
    spreads = {f"score_{name}_std": scores[name].std(correction=0).item() for name in scores}
    norm = get_total_norm(optimizer.stepped.values()).item()
    return text_metrics(responses) | spreads | {"parameter_norm": norm}


def watch(
    run: Run, guard: GuardConfig, optimizer: Optimizer, metrics: dict[str, float], progress: Progress, output: Path
) -> tuple[dict[str, float], Progress]:
    """An iteration's metrics and the progress after it; on an alarm that of the last good checkpoint, with less speed.

    Iterations count on, and with them prompts, random numbers and the schedules: what led astray is not drawn again.
    Every process decides alike, and loads the checkpoint. Raises InputError where there is none to go back to.
    """
    signals = guard.second_signals(run.config.rewards)
    alarms = find_alarms(metrics, progress.history, progress.iteration, guard, signals)
    if not run.processes.any(bool(alarms)):
        record = record_of(metrics, signals)
        history = progress.history.after(record, progress.iteration, guard.window, signals)
        return metrics, replace(progress, history=history)
    rewind = plan_rewind(alarms, progress.history, progress.iteration, progress.kl_coef, guard)
    if run.processes.is_main:
        print(as_line(rewind), flush=True)
    finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
    return finite | {"rewound_to": float(rewind.to_iteration)}, _go_back(run, optimizer, progress, rewind, output)


def _go_back(run: Run, optimizer: Optimizer, progress: Progress, rewind: Rewind, output: Path) -> Progress:
    """The progress with the models, scores and best of the checkpoint that the rewind names, and its changes."""
    folder = checkpoint_folder(output, rewind.to_iteration)
    if not folder.is_dir():
        raise missing_checkpoint(rewind.alarms, rewind.iteration, str(folder))
    before, tensors = load_progress(folder, run.config)
    take_over(run, optimizer, tensors)
    optimizer.rate_scale = rewind.learning_rate_scale
    return replace(
        progress,
        is_over=rewind.ends_run,
        kl_coef=rewind.kl_coef_after,
        moments=before.moments,
        best_iteration=before.best_iteration,
        best_value=before.best_value,
        history=progress.history.after_rewind(rewind, before.history),
    )
