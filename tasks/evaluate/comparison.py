"""The judged answers of every model to the same prompts, and the figures made of them.

Letter: N prompts, with one response of each model.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.evaluate.measures import length_controlled_win_rate, outcomes, sign_test
from tasks.evaluate.names import OTHERS, SCORE, SIDES
from tasks.intervals import bootstrap_interval
from tasks.repetition import commonest_phrase, distinct_n, repetition

Floats = NDArray[np.float64]
Decode = Callable[[Sequence[int]], str]


@dataclass(frozen=True)
class Answers:
    """One model's response to each prompt."""

    texts: Sequence[str]  # N
    tokens: Sequence[Sequence[int]]  # N, without padding and without the end token
    ended: Sequence[bool]  # N
    judgements: Mapping[str, Floats]  # by judge: [N], higher is better

    @property
    def lengths(self) -> Floats:
        """Tokens of each response, [N]."""
        return np.array([len(tokens) for tokens in self.tokens], dtype=np.float64)


@dataclass(frozen=True)
class Comparison:
    """Every model's answers to the same prompts, by the candidates' names: sft and ppo, maybe champion and base."""

    prompts: Sequence[str]  # N
    sampled: Mapping[str, Answers]
    greedy: Mapping[str, Answers]  # empty where nobody was asked
    kl: Mapping[str, Floats]  # [N] nats, of each sampled response; only of models with SFT's tokens

    @property
    def judges(self) -> list[str]:
        """Names of the judges; the first one gives the verdict."""
        return sorted(self.sampled["ppo"].judgements, key=lambda name: name != SCORE)


@dataclass(frozen=True)
class Bootstrap:
    """How the intervals are drawn."""

    num_draws: int
    seed: int

    def figures(self, name: str, values: Floats) -> dict[str, float]:
        """The mean of `values` [N] under the name, with the ends of its 95 % interval."""
        interval = bootstrap_interval(values, self.num_draws, self.seed)
        return {name: interval.mean, f"{name}_low": interval.low, f"{name}_high": interval.high}

    def win_rate(self, name: str, won: Floats, rival: Floats, own: Floats) -> dict[str, float]:
        """The win rate of outcomes `won` [n] with all its parts; the answers' lengths are rival [n] and own [n]."""
        return self.figures(name, won) | {
            f"{name}_p_value": sign_test(won),
            f"{name}_length_controlled": length_controlled_win_rate(won, rival, own),
        }


def figures(comparison: Comparison, bootstrap: Bootstrap, decode: Decode) -> dict[str, Any]:
    """All figures of the answers by name, flat, the verdict's first; see names.MEANINGS. `decode` shows tokens."""
    result: dict[str, Any] = {"num_prompts": len(comparison.prompts), "judge": comparison.judges[0]}
    for mode, answers in (("", comparison.sampled), ("greedy_", comparison.greedy)):
        if not answers:
            continue
        result |= _pair_figures(mode, answers["sft"], answers["ppo"], comparison.judges, bootstrap)
        if "champion" in answers:
            prefix = f"{mode}champion_"
            result |= _pair_figures(prefix, answers["champion"], answers["ppo"], comparison.judges, bootstrap)
        for name, own in answers.items():
            result |= _side_figures(mode, SIDES[name], own, decode)
        for name in OTHERS:
            if name in answers:
                pair = (answers[one].judgements[comparison.judges[0]] for one in ("sft", name))
                result |= bootstrap.figures(f"{mode}win_rate_{name}", outcomes(*pair))
    for name, values in comparison.kl.items():
        if name != "sft":
            result |= bootstrap.figures("kl" if name == "ppo" else f"kl_{name}", values)
    return result


def samples(comparison: Comparison) -> list[dict[str, Any]]:
    """Each prompt with every model's answer, what every judge says of them, and the KL of PPO's answer."""
    return [
        {
            "prompt": prompt,
            **{SIDES[name]: answers.texts[i] for name, answers in comparison.sampled.items()},
            **{
                f"{judge}_{SIDES[name]}": float(answers.judgements[judge][i])
                for judge in comparison.judges
                for name, answers in comparison.sampled.items()
            },
            "kl": float(comparison.kl["ppo"][i]),
            **{
                f"response_length_{SIDES[name]}": len(answers.tokens[i]) for name, answers in comparison.sampled.items()
            },
        }
        for i, prompt in enumerate(comparison.prompts)
    ]


def _pair_figures(
    prefix: str, rival: Answers, own: Answers, judges: Sequence[str], bootstrap: Bootstrap
) -> dict[str, float]:
    """PPO's `own` answers against the rival's by every judge; the first one's win rate also without its name."""
    result: dict[str, float] = {}
    for judge in judges:
        pair = rival.judgements[judge], own.judgements[judge]
        won = bootstrap.win_rate(f"{prefix}{judge}_win_rate", outcomes(*pair), rival.lengths, own.lengths)
        if judge == judges[0]:
            result |= {name.replace(f"{prefix}{judge}_", prefix, 1): value for name, value in won.items()}
        result |= won | bootstrap.figures(f"{prefix}{judge}_difference", pair[1] - pair[0])
    return result


def _side_figures(mode: str, side: str, answers: Answers, decode: Decode) -> dict[str, float | str]:
    """What one model's answers are like."""
    phrase, share = commonest_phrase(answers.tokens)
    result: dict[str, float | str] = {
        judge: float(judgements.mean()) for judge, judgements in answers.judgements.items()
    }
    result |= {
        "response_length": float(answers.lengths.mean()),
        "ended_share": float(np.mean(answers.ended)),
        "distinct_1": distinct_n(answers.tokens, 1),
        "distinct_2": distinct_n(answers.tokens, 2),
        "repetition": float(np.mean([repetition(tokens) for tokens in answers.tokens])),
        "commonest_phrase": decode(phrase),
        "commonest_phrase_share": share,
    }
    return {f"{mode}{name}_{side}": value for name, value in result.items()}
