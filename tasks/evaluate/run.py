"""PPO on held-out prompts, against SFT and against the champion: who wins, by how much, and at what distance from SFT.

    python -m tasks.evaluate.run --config config.json --input data=DIR --input sft=DIR --input ppo=DIR \\
        [--input champion=DIR] [--input base=DIR] [--input reward_model=DIR] [--input second_reward_model=DIR] \\
        --output DIR

Writes report.md (the page to read), evaluation.json (every figure), samples.json (every sampled answer), canaries.json,
scores.png and differences.png, speed.json, and report.json (the figures with three samples). All but report.md and
speed.json are the same from run to run. `python -m tasks.evaluate` compares any two models by hand.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tasks.evaluate.comparison import samples
from tasks.evaluate.config import EvaluateConfig
from tasks.evaluate.evaluation import Evaluation, measure
from tasks.evaluate.names import LABELS, MEANINGS
from tasks.evaluate.plots import plot_differences, plot_judgements
from tasks.evaluate.report import Page, markdown, verdict
from tasks.models.model_files import write_json
from tasks.models.modeling import quiet_libraries
from tasks.program import require, run_program
from tasks.tracking import MetricsLog

NUM_REPORTED_SAMPLES = 3


def main(config: EvaluateConfig, inputs: Mapping[str, Path], output: Path, labels: Mapping[str, str] = LABELS) -> None:
    """Compare the models in `inputs` and write the evaluation to `output`; `labels` name each side to the reader."""
    quiet_libraries()
    require(inputs, "data", "sft", "ppo", *inputs)
    log = MetricsLog(output)
    evaluation = measure(config, inputs, output, log.write)
    write_evaluation(evaluation, config, labels, output)
    print("\n".join(verdict(evaluation.figures, evaluation.comparison.judges, labels)))


def write_evaluation(evaluation: Evaluation, config: EvaluateConfig, labels: Mapping[str, str], output: Path) -> None:
    """Fill `output` with the page, the figures, the samples and the pictures; report.json comes last."""
    comparison = evaluation.comparison
    answers = samples(comparison)
    page = Page(
        figures=evaluation.figures,
        judges=comparison.judges,
        llm=None if config.llm_judge is None else config.llm_judge.name,
        samples=answers[: config.num_samples],
        canaries=evaluation.canaries,
        speed=evaluation.speed,
        labels=labels,
    )
    (output / "report.md").write_text(markdown(page))
    _write(output / "samples.json", answers)
    _write(output / "canaries.json", evaluation.canaries)
    plot_judgements(comparison, labels, output / "scores.png")
    plot_differences(comparison, labels, output / "differences.png")
    write_json(output / "speed.json", dict(evaluation.speed))
    result = {
        **evaluation.figures,
        "judges": comparison.judges,
        "not_measured": dict(evaluation.not_measured),
    }
    settings = {"config": config.model_dump(mode="json"), "conversational": evaluation.conversational}
    write_json(output / "evaluation.json", {**result, "about": MEANINGS, **settings})
    write_json(output / "report.json", {**result, "samples": answers[:NUM_REPORTED_SAMPLES]})


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    run_program(main, EvaluateConfig)
