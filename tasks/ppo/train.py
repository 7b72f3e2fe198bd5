"""Proximal policy optimisation of a language model against a reward model or a reward function.

    accelerate launch -m tasks.ppo.train --config config.json --input data=DIR --input policy=DIR
        [--input reward_model=DIR] --output DIR

Roll out, measure, update, and again; then OUTPUT is an `actor_critic`: policy and value model.
"""

import math
import resource
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tasks.errors import InputError
from tasks.model_files import write_json
from tasks.ppo.checkpoint import Progress, load_checkpoint, newest_checkpoint, restore_logs, save_checkpoint
from tasks.ppo.config import PPOConfig
from tasks.ppo.evaluation import evaluate_policy
from tasks.ppo.metrics import CURVES, fit_metrics, rollout_metrics, to_floats
from tasks.ppo.optimizer import Optimizer
from tasks.ppo.rollout import Run, roll_out
from tasks.ppo.setup import Prompts, set_up
from tasks.ppo.update import targets_of, update
from tasks.program import run_program
from tasks.prompts import batch_of
from tasks.tracking import MetricsLog, plot_curves, read_metrics

STOPPED = 128 + signal.SIGTERM


def main(config: PPOConfig, inputs: Mapping[str, Path], output: Path) -> None:
    """Train policy and value model and leave them in `output`; resumes from the newest checkpoint there."""
    run, prompts = set_up(config, inputs)
    optimizer = Optimizer(run.models.trainable, config, run.processes)
    progress = _resume(run, optimizer, output)
    progress = train(run, optimizer, prompts, progress, output)
    if run.processes.is_main:
        run.models.save(output, run.tokenizer, {"iterations": progress.iteration})
        write_report(progress, config, output)
    run.processes.leave()


def train(run: Run, optimizer: Optimizer, prompts: Prompts, progress: Progress, output: Path) -> Progress:
    """The iterations from `progress` to the last, with evaluations and checkpoints; exits when SIGTERM came."""
    config, processes = run.config, run.processes
    log = MetricsLog(output, progress.iteration) if processes.is_main else None
    if progress.iteration == 0:
        metrics, progress = _evaluate(run, prompts, progress, output)
        _tell(log, 0, config, metrics)
    with _sigterm_noted() as sigterm:
        for step in range(progress.iteration + 1, config.num_iterations + 1):
            metrics, progress = iterate(run, optimizer, prompts, progress)
            is_last = step == config.num_iterations
            if is_last or (config.evaluate_every and step % config.evaluate_every == 0):
                evaluation, progress = _evaluate(run, prompts, progress, output)
                metrics |= evaluation
            _tell(log, step, config, metrics)
            is_stopping = processes.any(sigterm.is_set())
            if processes.is_main and (is_last or is_stopping or step % config.checkpoint_every == 0):
                save_checkpoint(output, progress, optimizer.state(), config)
            if is_stopping:
                processes.leave()
                sys.exit(STOPPED)
    return progress


def iterate(run: Run, optimizer: Optimizer, prompts: Prompts, progress: Progress) -> tuple[dict[str, float], Progress]:
    """One iteration: roll out, advantages, epochs of updates. Its metrics, and the progress after it."""
    config, iteration = run.config, progress.iteration
    batch = batch_of(prompts.train, iteration, config.batch_size, config.seed)
    rollout = roll_out(run, batch, "rollout", config.seed, iteration)
    with run.clock("update"):
        targets = targets_of(rollout, config)
        losses = update(run, optimizer, rollout, targets, iteration)
    metrics = to_floats(rollout_metrics(rollout) | fit_metrics(rollout.values, targets.returns, rollout.mask) | losses)
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise InputError(
                f"Iteration {iteration + 1}: {name} is {value}. Lower learning_rate and value_learning_rate; "
                f"the last checkpoint, if any, is from before."
            )
    seconds = run.clock.take()
    num_tokens = round(metrics["response_length"] * config.batch_size)
    metrics["tokens_per_s"] = num_tokens / sum(seconds.values())
    rates = optimizer.learning_rates((iteration + 1) * config.num_ppo_epochs * config.num_mini_batches - 1)
    metrics |= dict(zip(("learning_rate", "value_learning_rate"), rates, strict=True))
    metrics |= {f"{phase}_s": duration for phase, duration in seconds.items()}
    return metrics, progress.after_iteration(seconds, num_tokens)


def write_report(progress: Progress, config: PPOConfig, output: Path) -> None:
    """Write OUTPUT/report.json and OUTPUT/curves.png from the run's metrics."""
    records = read_metrics(output)
    evaluations = [record for record in records if "eval_score" in record]
    first, last = evaluations[0], evaluations[-1]
    report = {
        "score_before": first["eval_score"],
        "score_after": last["eval_score"],
        "kl": last["eval_kl"],
        "response_length_before": first["eval_response_length"],
        "response_length_after": last["eval_response_length"],
        "ended_before": first["eval_ended"],
        "ended_after": last["eval_ended"],
        "num_iterations": progress.iteration,
        "num_episodes": progress.iteration * config.batch_size,
        "num_steps": config.num_steps,
        "num_tokens": progress.num_tokens,
        "num_processes": progress.num_processes,
        "seconds": {phase: round(duration, 3) for phase, duration in progress.seconds.items()},
        "tokens_per_s": progress.num_tokens / sum(progress.seconds.values()),
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    write_json(output / "report.json", report)
    plot_curves(records, CURVES, output / "curves.png")


def _resume(run: Run, optimizer: Optimizer, output: Path) -> Progress:
    """How far the newest checkpoint in `output` has come, parameters and moments taken over; or the start."""
    folder = newest_checkpoint(output)
    progress = Progress(iteration=0, num_processes=run.processes.count, seconds={}, num_tokens=0)
    if folder is not None:
        progress, tensors = load_checkpoint(folder, run.config)
        optimizer.load_state(tensors)
        print(f"resuming after iteration {progress.iteration} from {folder}")
        if progress.num_processes != run.processes.count:
            print(f"it was written by {progress.num_processes} processes: rounding will differ from an undisturbed run")
    run.processes.wait()
    if run.processes.is_main:
        restore_logs(folder, output)
    return progress


def _evaluate(run: Run, prompts: Prompts, progress: Progress, output: Path) -> tuple[dict[str, float], Progress]:
    metrics = evaluate_policy(run, prompts.held_out, progress.iteration, output)
    return metrics, progress.after_phase("evaluate", sum(run.clock.take().values()))


def _tell(log: MetricsLog | None, step: int, config: PPOConfig, metrics: Mapping[str, float]) -> None:
    """Log the step's metrics, and print the few that tell whether it goes well; only the main process has a log."""
    if log is None:
        return
    log.write(step, config.num_iterations, metrics)
    names = ("score", "kl", "entropy", "clip_fraction", "explained_variance", "response_length", "eval_score")
    shown = "  ".join(f"{name} {metrics[name]:.3g}" for name in names if name in metrics)
    print(f"iteration {step}/{config.num_iterations}  {shown}", flush=True)


@contextmanager
def _sigterm_noted() -> Iterator[threading.Event]:
    """Inside, SIGTERM sets the event and interrupts nothing: the iteration comes to its end and is kept."""
    event = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: event.set())
    try:
        yield event
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    run_program(main, PPOConfig)
