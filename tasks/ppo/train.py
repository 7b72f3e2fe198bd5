"""Proximal policy optimisation of a language model against reward models, rules, services or functions.

    accelerate launch -m tasks.ppo.train --config config.json --input data=DIR --input policy=DIR
        [--input reward_model=DIR] [--input second_reward_model=DIR] [--input start_policy=DIR]
        [--input start_value=DIR] [--input reference=DIR] --output DIR

Roll out, measure, update, and again; then OUTPUT is an `actor_critic`: policy and value model.
"""

import math
import resource
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from tasks.actor_critic.optimizer import Optimizer
from tasks.checkpoints import checkpoint_folder, newest_checkpoint, read_tensors, restore_logs
from tasks.errors import InputError
from tasks.guard import report as guard_report
from tasks.models.model_files import write_json
from tasks.ppo.checkpoint import LOGS, Progress, load_progress, save_progress, take_over, tensors_of
from tasks.ppo.config import PPOConfig
from tasks.ppo.evaluation import SAMPLES_FILE, evaluate_policy
from tasks.ppo.guarding import guard_metrics, watch
from tasks.ppo.metrics import CURVES, rollout_metrics, target_metrics, to_floats
from tasks.ppo.objective import adapted_kl_coef
from tasks.ppo.rollout import Run, roll_out
from tasks.ppo.setup import Prompts, load_callbacks, set_up
from tasks.ppo.targets import targets_of
from tasks.ppo.update import update
from tasks.program import STOPPED, run_program, sigterm_noted
from tasks.prompts import batch_of
from tasks.samples import as_markdown, read_samples
from tasks.trackers import Reporter
from tasks.tracking import plot_curves, read_metrics

SHOWN = ("score", "kl", "entropy", "clip_fraction", "explained_variance", "response_length", "eval_score")
WIDEST_GAP = 0.5  # nats, mean over the tokens: far beyond rounding

Metrics = Mapping[str, float]
Callback = Callable[[int, Metrics, Run], bool | None]
"""Called on every process after each iteration, with its number from 1 and its metrics; True makes it the last."""


def main(config: PPOConfig, inputs: Mapping[str, Path], output: Path) -> None:
    """Train policy and value model and leave them in `output`; resumes from the newest checkpoint there."""
    callbacks = load_callbacks(config)
    run, prompts = set_up(config, inputs, output)
    optimizer = make_optimizer(run)
    progress = resume(run, optimizer, output)
    progress = train(run, optimizer, prompts, progress, output, callbacks)
    if run.processes.is_main:
        best = progress.best_iteration if config.use_best or progress.history.has_stopped else None
        result = progress.iteration if best is None else best
        if result != progress.iteration:
            take_over(run, optimizer, read_tensors(checkpoint_folder(output, result)))
        run.models.save(output, run.tokenizer, {"iterations": result})
        write_report(progress, config, output, result)
    run.processes.leave()


def train(
    run: Run,
    optimizer: Optimizer,
    prompts: Prompts,
    progress: Progress,
    output: Path,
    callbacks: Sequence[Callback] = (),
) -> Progress:
    """The iterations from `progress` to the last, with evaluations and checkpoints; exits when SIGTERM came."""
    config, processes = run.config, run.processes
    tell = Reporter(processes, config, output, first=progress.iteration, last=config.num_iterations, shown=SHOWN)
    if progress.best_value is None:
        metrics, progress = _evaluate(run, prompts, progress, output)
        tell(0, metrics)
        if config.use_best or config.guard is not None:
            progress = progress.after_checkpoint(config)
            if processes.is_main:
                save_progress(output, progress, tensors_of(run, optimizer), config)
    with sigterm_noted() as sigterm:
        while not progress.is_over:
            metrics, progress = iterate(run, optimizer, prompts, progress)
            step = progress.iteration
            if config.guard is not None:
                metrics, progress = watch(run, config.guard, optimizer, metrics, progress, output)
            has_rewound = "rewound_to" in metrics
            wishes = [progress.is_over, *(callback(step, metrics, run) for callback in callbacks)]
            progress = replace(progress, is_over=step == config.num_iterations or processes.any(any(wishes)))
            if progress.is_over or (config.evaluate_every and step % config.evaluate_every == 0):
                evaluation, progress = _evaluate(run, prompts, progress, output)
                metrics |= evaluation
            tell(step, metrics)
            is_stopping = processes.any(sigterm.is_set())
            is_due = step % config.checkpoint_every == 0 or step == progress.best_iteration or has_rewound
            if is_due:
                progress = progress.after_checkpoint(config)
            if processes.is_main and (progress.is_over or is_stopping or is_due):
                save_progress(output, progress, tensors_of(run, optimizer), config)
            if is_stopping:
                processes.leave()
                sys.exit(STOPPED)
    return progress


def iterate(run: Run, optimizer: Optimizer, prompts: Prompts, progress: Progress) -> tuple[dict[str, float], Progress]:
    """One iteration: roll out, advantages, epochs of updates. Its metrics, and the progress after it."""
    config, iteration = run.config, progress.iteration
    batch = batch_of(prompts.train, iteration, config.batch_size, config.seed, config.prompt_proportions)
    rollout = roll_out(run, batch, "rollout", config.seed, iteration)
    moments = progress.moments.after(rollout.scores)
    with run.clock("update"):
        targets = targets_of(rollout, config, progress.kl_coef, moments)
        losses = update(run, optimizer, rollout, targets, iteration)
        run.models.move_reference(config.reference_decay)
    metrics = to_floats(rollout_metrics(rollout) | target_metrics(rollout, targets) | losses)
    if config.rollout_engine == "vllm":
        _check_server(metrics, iteration + 1)
    if config.guard is None:
        _check_finite(metrics, iteration + 1)
    else:
        metrics |= guard_metrics(run, config.guard, optimizer, rollout)
    seconds = run.clock.take()
    num_tokens = round(metrics["response_length"] * config.batch_size)
    rates = optimizer.learning_rates((iteration + 1) * config.steps_per_iteration - 1)
    metrics |= dict(zip(("learning_rate", "value_learning_rate"), rates, strict=True))
    metrics |= {f"{phase}_s": duration for phase, duration in seconds.items()}
    metrics["tokens_per_s"] = num_tokens / sum(seconds.values())
    kl_coef = progress.kl_coef
    if config.kl_target is not None:
        kl_coef = adapted_kl_coef(kl_coef, metrics["kl"], config.kl_target, config.batch_size, config.kl_horizon)
    return metrics, replace(
        progress.after_phases(seconds),
        iteration=iteration + 1,
        kl_coef=kl_coef,
        moments=moments,
        num_tokens=progress.num_tokens + num_tokens,
    )


def make_optimizer(run: Run) -> Optimizer:
    """Of the run's policy and value model, before its first step."""
    config = run.config
    return Optimizer(
        run.models.trainable,
        config,
        run.processes,
        num_steps=config.num_iterations * config.steps_per_iteration,
        first_policy_step=config.value_pretraining_iterations * config.steps_per_iteration,
    )


def resume(run: Run, optimizer: Optimizer, output: Path) -> Progress:
    """How far the newest checkpoint in `output` has come, with its parameters and moments; or the start."""
    folder = newest_checkpoint(output)
    progress = Progress(num_processes=run.processes.count, kl_coef=run.config.kl_coef)
    if folder is not None:
        progress, tensors = load_progress(folder, run.config)
        take_over(run, optimizer, tensors)
        optimizer.rate_scale = progress.history.learning_rate_scale
        print(f"resuming after iteration {progress.iteration} from {folder}")
        if progress.num_processes != run.processes.count:
            print(f"it was written by {progress.num_processes} processes: rounding will differ from an undisturbed run")
    run.processes.wait()
    if run.processes.is_main:
        restore_logs(folder, output, LOGS)
    return progress


def write_report(progress: Progress, config: PPOConfig, output: Path, result: int) -> None:
    """Write OUTPUT/report.json, report.md and curves.png; `result` is the iteration that the saved policy is of."""
    records = read_metrics(output)
    evaluations = {record["step"]: record for record in records if "eval_score" in record}
    before, after = evaluations[0], evaluations[result]
    report: dict[str, object] = {
        f"{name}_{when}": evaluation[f"eval_{name}"]
        for name in ("score", "response_length", "ended")
        for when, evaluation in (("before", before), ("after", after))
    }
    report |= {
        "kl": after["eval_kl"],
        "best_iteration": progress.best_iteration,
        "num_iterations": progress.iteration,
        "num_episodes": progress.iteration * config.batch_size,
        "num_steps": progress.iteration * config.steps_per_iteration,
        "num_tokens": progress.num_tokens,
        "num_processes": progress.num_processes,
        "seconds": {phase: round(duration, 3) for phase, duration in progress.seconds.items()},
        "tokens_per_s": progress.num_tokens / sum(progress.seconds.values()),
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    if config.guard is not None:
        report |= guard_report.as_figures(progress.history)
    write_json(output / "report.json", report)
    samples = [sample for sample in read_samples(output / SAMPLES_FILE) if sample.step in (0, result)]
    (output / "report.md").write_text(guard_report.as_markdown(progress.history, result) + as_markdown(samples))
    plot_curves(records, CURVES, output / "curves.png")


def _evaluate(run: Run, prompts: Prompts, progress: Progress, output: Path) -> tuple[dict[str, float], Progress]:
    """The metrics of an evaluation, and the progress with what it took and whether it is the best."""
    metrics = evaluate_policy(run, prompts.held_out, progress.iteration, output)
    name = run.config.best_metric
    value = -metrics[name[1:]] if name.startswith("-") else metrics[name]
    return metrics, progress.after_phases({"evaluate": sum(run.clock.take().values())}).after_evaluation(value)


def _check_finite(metrics: Metrics, iteration: int) -> None:
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise InputError(
                f"Iteration {iteration}: {name} is {value}. Lower learning_rate and value_learning_rate; "
                f"the last checkpoint, if any, is from before."
            )


def _check_server(metrics: Metrics, iteration: int) -> None:
    if metrics.get("generation_gap", 0) > WIDEST_GAP:
        raise InputError(
            f"Iteration {iteration}: the logprobs of what generates are {metrics['generation_gap']:.2f} nats from the "
            "policy's, so it is not the policy. Start the rollout engine's server with the policy's base."
        )


if __name__ == "__main__":
    run_program(main, PPOConfig)
