"""What the figures of a run come to: the headline, the tiles below it, and the tables of the evaluation."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tasks.evaluate.names import ANSWER_ROWS, LABELS, PERPLEXITY_ROW
from tasks.report.facts import RunFacts
from tasks.retention.runs import RunRecord
from tasks.rules import FAILED, PASSED, Verdict

WIN_RATE = re.compile(r"(?P<greedy>greedy_)?(?P<champion>champion_)?(?P<judge>\w+?)_win_rate")
NO_JUDGES = ("champion", "greedy", "greedy_champion")
JUDGES = {"score": "reward model", "second_score": "second reward model"}
SIDES = tuple(LABELS)
ROWS = (("KL to SFT, nats per response", "kl", ".2f"), PERPLEXITY_ROW, *ANSWER_ROWS)


@dataclass(frozen=True)
class Headline:
    """The verdict: a word, its tone (good, bad or wait), sentences, and the rules that decided."""

    word: str
    tone: str
    sentences: Sequence[str]
    rules: Sequence[str] = ()


@dataclass(frozen=True)
class Tile:
    """One figure that a person looks for first."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class WinRate:
    """How often PPO's answer beats a rival's by one judge, with the ends of the 95 % interval."""

    judge: str
    rival: str
    greedy: bool
    value: float
    low: float
    high: float


def headline(record: RunRecord) -> Headline:
    """What came of the run."""
    if record.outcome == "exported":
        return _exported(record)
    if record.outcome == "refused":
        return _refused(record)
    if record.outcome == "uncertified":
        return _uncertified(record)
    if record.outcome == "failed":
        return _failed(record)
    return Headline("Not ended", "wait", [f"The run is under way, or was killed, after {_last_stage(record)}."])


def rules_in_words(verdicts: Sequence[Verdict]) -> list[str]:
    """Each rule that failed, with what was measured."""
    return [
        f"{one.measures} is {'not measured' if one.measured is None else f'{one.measured:.4g}'}, has to be {one.demand}"
        for one in verdicts
        if one.verdict == FAILED
    ]


def tiles(facts: RunFacts) -> list[Tile]:
    """The figures that there are, in the order of their weight."""
    figures = facts.record.figures
    found = [
        _share_tile("Win rate over SFT", "win_rate", figures),
        _share_tile("Win rate over the champion", "champion_win_rate", figures),
        _mean_tiles(facts),
        _interval_tile("KL to SFT, nats", "kl", figures, ".2f"),
        Tile("Alignment tax", f"{figures['tax']:+.1%}", "rise of perplexity") if "tax" in figures else None,
        _stage_tile(facts, "reward_model", "pair_accuracy", "Reward model's pair accuracy", ".1%"),
        _stage_tile(facts, "sft", "eval_loss", "SFT loss, held out", ".3f"),
    ]
    return [tile for tile in found if tile is not None]


def win_rates(report: Mapping[str, Any]) -> list[WinRate]:
    """Every win rate of the evaluation that has an interval, those over SFT first."""
    found = []
    for name, value in report.items():
        match = WIN_RATE.fullmatch(name)
        if match and match["judge"] not in NO_JUDGES and f"{name}_low" in report:
            rival = LABELS["champion"] if match["champion"] else LABELS["before"]
            judge = JUDGES.get(match["judge"], match["judge"])
            ends = (float(report[f"{name}_{end}"]) for end in ("low", "high"))
            found.append(WinRate(judge, rival, bool(match["greedy"]), float(value), *ends))
    return sorted(found, key=lambda one: one.rival != LABELS["before"])


def first_judge(figures: Mapping[str, Any]) -> str | None:
    """The judge that gave the verdict: the first by whom there is a win rate."""
    matches = (WIN_RATE.fullmatch(name) for name in figures)
    return next((match["judge"] for match in matches if match and match["judge"] not in NO_JUDGES), None)


def sides_in(report: Mapping[str, Any]) -> list[str]:
    """Whose answers were measured."""
    return [side for side in SIDES if f"response_length_{side}" in report]


def comparison(report: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """A row for each figure: its name, and a cell for each of `sides_in`."""
    sides = sides_in(report)
    judges = [(f"Mean by {JUDGES.get(judge, judge)}", judge, ".3f") for judge in report.get("judges", [])]
    rows = []
    for label, name, form in (*judges, *ROWS):
        own = {"after": report.get("kl")} if name == "kl" else {}
        values = [report.get(f"{name}_{side}", own.get(side)) for side in sides]
        if any(value is not None for value in values):
            rows.append((label, ["" if value is None else f"{value:{form}}" for value in values]))
    return rows


def _exported(record: RunRecord) -> Headline:
    place = f"and is the champion of {record.pipeline}" if record.champion else "and did not become the champion"
    passed, others = (sum((one.verdict == PASSED) is which for one in record.verdicts) for which in (True, False))
    proof = f" It passed {passed} rules of the gate{f'; {others} did not apply' if others else ''}." if passed else ""
    return Headline("Exported", "good", [f"The model went out {place}.{proof}", *_comparison(record.figures)])


def _refused(record: RunRecord) -> Headline:
    rules = rules_in_words(record.verdicts)
    refusal = (
        f"The model failed {len(rules)} of {len(record.verdicts)} rules. Nothing was exported, the champion stays."
    )
    return Headline("Refused by the gate", "bad", [refusal, *_comparison(record.figures)], rules)


def _uncertified(record: RunRecord) -> Headline:
    rules = rules_in_words(record.certificate)
    refusal = f"The reward model failed {len(rules)} of {len(record.certificate)} thresholds."
    return Headline("Refused by the certificate", "bad", [refusal, "PPO was not started, the champion stays."], rules)


def _failed(record: RunRecord) -> Headline:
    error = record.error.strip()
    first = error.splitlines()[0] if error else "The record does not say why."
    return Headline("Failed", "bad", [first, f"It came as far as {_last_stage(record)}."])


def _comparison(figures: Mapping[str, float]) -> list[str]:
    if "win_rate" not in figures:
        return []
    low, high = figures.get("win_rate_low"), figures.get("win_rate_high")
    ends = "" if low is None or high is None else f" (95 % interval {low:.1%} to {high:.1%})"
    prompts = f" of {figures['num_prompts']:.0f} held-out prompts" if "num_prompts" in figures else ""
    return [f"PPO's answer beats SFT's on {figures['win_rate']:.1%}{prompts}{ends}."]


def _last_stage(record: RunRecord) -> str:
    return f"the stage {record.stages[-1].stage}" if record.stages else "no stage"


def _share_tile(label: str, name: str, figures: Mapping[str, float]) -> Tile | None:
    return _interval_tile(label, name, figures, ".1%")


def _interval_tile(label: str, name: str, figures: Mapping[str, float], form: str) -> Tile | None:
    if name not in figures:
        return None
    ends = [figures.get(f"{name}_{end}") for end in ("low", "high")]
    note = "" if None in ends else f"95 %: {ends[0]:{form}} to {ends[1]:{form}}"
    return Tile(label, f"{figures[name]:{form}}", note)


def _mean_tiles(facts: RunFacts) -> Tile | None:
    evaluation = facts.stage("evaluate")
    judge = evaluation.report.get("judge") if evaluation else None
    figures = facts.record.figures
    if judge is None or f"{judge}_after" not in figures:
        return None
    name = "Score" if judge == "score" else f"Mean by {judge}"
    return Tile(f"{name}, SFT → PPO", f"{figures[f'{judge}_before']:.2f} → {figures[f'{judge}_after']:.2f}")


def _stage_tile(facts: RunFacts, stage: str, name: str, label: str, form: str) -> Tile | None:
    found = facts.stage(stage)
    value = found.report.get(name) if found else None
    return None if value is None else Tile(label, f"{value:{form}}")
