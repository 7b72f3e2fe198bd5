"""The whole evaluation without its files: ask the models, let the judges judge, make the figures."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.evaluate import llm_judge
from tasks.evaluate.answers import Rows
from tasks.evaluate.canaries import canary_figures, canary_rows
from tasks.evaluate.candidates import Candidate, ask_candidates, check_candidates, choose_records, num_batches
from tasks.evaluate.comparison import Answers, Bootstrap, Comparison, figures
from tasks.evaluate.config import EvaluateConfig
from tasks.evaluate.harness import check_harness
from tasks.evaluate.judges import Questions, check_judges, judge_all
from tasks.evaluate.names import HARNESS, SECOND_SCORE, SIDES
from tasks.evaluate.perplexity import read_sft_records
from tasks.models.modeling import load_tokenizer

RIVALS = {"sft": "", "champion": "champion_"}  # of PPO, and what stands before the names of their figures

Progress = Callable[[int, int, Mapping[str, float]], None]


@dataclass(frozen=True)
class Evaluation:
    """What was measured."""

    comparison: Comparison
    figures: Mapping[str, Any]
    not_measured: Mapping[str, str]  # a pattern of figures' names: why there are none
    canaries: list[dict[str, str]]
    speed: Mapping[str, Mapping[str, float]]  # by candidate; not the same from run to run
    conversational: bool


def measure(
    config: EvaluateConfig, inputs: Mapping[str, Path], output: Path, progress: Progress = lambda *_: None
) -> Evaluation:
    """The evaluation of the models in `inputs`; raises InputError before any model is loaded for what does not fit.

    `output` takes the log of what a judge was asked.
    """
    questions = Questions(choose_records(inputs["data"], config.num_prompts, config.seed))
    home = load_tokenizer(inputs["sft"])
    check_candidates(inputs, home)
    check_judges(config, inputs, home, questions)
    if config.llm_judge is not None:
        llm_judge.check_llm_judge(config.llm_judge)
    if config.harness is not None:
        check_harness(config.harness)
    records = read_sft_records(config, inputs["data"], inputs["sft"], home)
    total, done = num_batches(inputs, len(questions.records), config) + 1, 0

    def on_batch(_: str, rows: Rows) -> None:
        nonlocal done
        done += 1
        length = sum(map(len, rows.ids)) / len(rows.ids)
        progress(done, total, {"response_length": length, "ended_share": sum(rows.ended) / len(rows.ended)})

    candidates = ask_candidates(config, inputs, questions, records, on_batch)
    comparison = _judged(candidates, questions, config, inputs)
    canaries = canary_rows(config.canaries, {name: candidate.canaries for name, candidate in candidates.items()})
    bootstrap = Bootstrap(config.num_bootstrap, config.seed)
    result = figures(comparison, bootstrap, home.decode)
    result |= _llm_figures(comparison, bootstrap, config, output)
    result |= _perplexities(candidates) | _harness_figures(candidates) | canary_figures(canaries)
    progress(total, total, {name: result[name] for name in ("win_rate", "kl")})
    return Evaluation(
        comparison=comparison,
        figures=result,
        not_measured=_not_measured(config, candidates, comparison.judges, has_records=records is not None),
        canaries=canaries,
        speed={name: candidate.speed for name, candidate in candidates.items()},
        conversational=not isinstance(questions.prompts[0], str),
    )


def _judged(
    candidates: Mapping[str, Candidate], questions: Questions, config: EvaluateConfig, inputs: Mapping[str, Path]
) -> Comparison:
    """Every set of answers, judged; the same set only once."""
    sampled = {name: candidate.sampled for name, candidate in candidates.items()}
    greedy = {name: candidate.greedy for name, candidate in candidates.items() if candidate.greedy is not None}
    different = {str(id(rows)): rows for rows in (*sampled.values(), *greedy.values())}
    judged = judge_all(different, questions, config, inputs)

    def with_judgements(sets: Mapping[str, Rows]) -> dict[str, Answers]:
        return {name: judged[str(id(rows))] for name, rows in sets.items()}

    return Comparison(
        prompts=questions.texts,
        sampled=with_judgements(sampled),
        greedy=with_judgements(greedy),
        kl={name: candidate.kl for name, candidate in candidates.items() if candidate.kl is not None},
    )


def _llm_figures(
    comparison: Comparison, bootstrap: Bootstrap, config: EvaluateConfig, output: Path
) -> dict[str, float]:
    """PPO's sampled answers against SFT's, and the champion's, by the language model."""
    if config.llm_judge is None:
        return {}
    ask = llm_judge.load_llm_judge(config.llm_judge, output)
    own = comparison.sampled["ppo"]
    result: dict[str, float] = {}
    for name, prefix in RIVALS.items():
        if name in comparison.sampled:
            rival = comparison.sampled[name]
            verdicts = llm_judge.compare(config.llm_judge, ask, comparison.prompts, rival.texts, own.texts)
            count, judge = len(verdicts.outcomes), f"{prefix}{config.llm_judge.name}"
            result |= bootstrap.win_rate(
                f"{judge}_win_rate", verdicts.outcomes, rival.lengths[:count], own.lengths[:count]
            )
            result |= {f"{judge}_{end}": value for end, value in verdicts.figures().items()}
    return result


def _perplexities(candidates: Mapping[str, Candidate]) -> dict[str, float]:
    """Each model's perplexity on SFT records, and by how much PPO's and the champion's is above SFT's."""
    found = {name: one.perplexity for name, one in candidates.items() if one.perplexity is not None}
    result = {f"perplexity_{SIDES[name]}": value for name, value in found.items()}
    taxes = {"tax": "ppo", "tax_champion": "champion"}
    return result | {tax: found[name] / found["sft"] - 1 for tax, name in taxes.items() if name in found}


def _harness_figures(candidates: Mapping[str, Candidate]) -> dict[str, float]:
    """What each model did in the harness's tasks."""
    return {
        f"{HARNESS}{figure}_{SIDES[name]}": value
        for name, candidate in candidates.items()
        for figure, value in candidate.harness.items()
    }


def _not_measured(
    config: EvaluateConfig, candidates: Mapping[str, Candidate], judges: Sequence[str], has_records: bool
) -> dict[str, str]:
    """Why there are no figures of certain names."""
    reasons = {
        "*champion*": None if "champion" in candidates else "there is no champion yet",
        "*second_score*": None if SECOND_SCORE in judges else "there is no second reward model",
        "*_base*": None if "base" in candidates else "there is no base model",
        "greedy_*": None if config.greedy else "evaluate.greedy is off",
        "*canar*": None if config.canaries else "there are no canaries",
        "perplexity_*": None if has_records else "there are no held-out SFT records",
        "tax*": None if has_records else "there are no held-out SFT records",
    }
    for name in ("champion", "base"):
        if name in candidates and candidates[name].kl is None:
            reasons |= {
                f"{figure}_{name}*": f"the {name} has another tokenizer" for figure in ("kl", "perplexity", "tax")
            }
    return {pattern: reason for pattern, reason in reasons.items() if reason is not None}
