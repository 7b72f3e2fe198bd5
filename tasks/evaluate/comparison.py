"""What was measured on two models' answers to the same prompts, and the figures made of it.

Letter: N prompts, with one response of each model. "Before" is SFT, "after" is PPO.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.evaluate.measures import bootstrap_interval, commonest_phrase, distinct_n, outcomes, repetition

SCORE = "score"
Floats = NDArray[np.float64]

MEANINGS = {
    "num_prompts": "held-out prompts that both models answered",
    "judge": "whose win rate is the verdict: the reward model's score, or the first metric where there is none",
    "win_rate": "share of prompts on which PPO's answer is the higher by the judge; a tie counts half",
    "win_rate_low": "lower end of the win rate's 95 % bootstrap interval, prompts resampled",
    "win_rate_high": "upper end of the win rate's 95 % bootstrap interval, prompts resampled",
    "kl": "KL(PPO || SFT) of whole responses in nats: mean over PPO's own responses of the summed log ratio",
    "kl_low": "lower end of its 95 % bootstrap interval",
    "kl_high": "upper end of its 95 % bootstrap interval",
    "{judge}_before": "mean over SFT's answers",
    "{judge}_after": "mean over PPO's answers",
    "{judge}_difference": "mean of after - before, with _low and _high of its 95 % bootstrap interval",
    "{judge}_win_rate": "win rate by this judge, with _low and _high of its 95 % bootstrap interval",
    "response_length_*": "mean tokens of a response, its end token left out",
    "ended_share_*": "share of responses that ended by themselves within the allowed length",
    "distinct_1_*": "different tokens / all tokens, over all responses",
    "distinct_2_*": "different pairs of neighbours / all pairs, over all responses",
    "repetition_*": "mean share of a response's 4-grams that occurred in it before",
    "commonest_phrase_*": "the 4-gram that stands in the most responses",
    "commonest_phrase_share_*": "share of responses in which it stands",
}


@dataclass(frozen=True)
class Answers:
    """One model's response to each prompt."""

    texts: Sequence[str]  # N
    tokens: Sequence[Sequence[int]]  # N, without padding and without the end token
    ended: Sequence[bool]  # N
    judgements: Mapping[str, Floats]  # by judge: [N], higher is better


@dataclass(frozen=True)
class Comparison:
    """Both models' answers to the same prompts."""

    prompts: Sequence[str]  # N
    before: Answers
    after: Answers
    kl: Floats  # [N] nats, of PPO's response

    @property
    def judges(self) -> list[str]:
        """Names of the judges; the first one gives the verdict."""
        return sorted(self.after.judgements, key=lambda name: name != SCORE)


def concatenate(parts: Sequence[Comparison]) -> Comparison:
    """The comparisons of several batches as one, in their order."""

    def joined(answers: Sequence[Answers]) -> Answers:
        return Answers(
            texts=[text for part in answers for text in part.texts],
            tokens=[tokens for part in answers for tokens in part.tokens],
            ended=[ended for part in answers for ended in part.ended],
            judgements={
                judge: np.concatenate([part.judgements[judge] for part in answers]) for judge in answers[0].judgements
            },
        )

    return Comparison(
        prompts=[prompt for part in parts for prompt in part.prompts],
        before=joined([part.before for part in parts]),
        after=joined([part.after for part in parts]),
        kl=np.concatenate([part.kl for part in parts]),
    )


def figures(
    comparison: Comparison, num_bootstrap: int, seed: int, decode: Callable[[Sequence[int]], str]
) -> dict[str, Any]:
    """All figures by name, flat, the verdict's first; MEANINGS says what each is. `decode` makes tokens readable."""

    def with_interval(name: str, values: Floats) -> dict[str, float]:
        interval = bootstrap_interval(values, num_bootstrap, seed)
        return {name: interval.mean, f"{name}_low": interval.low, f"{name}_high": interval.high}

    before, after = comparison.before, comparison.after
    result: dict[str, Any] = {"num_prompts": len(comparison.prompts), "judge": comparison.judges[0]}
    for judge in comparison.judges:
        pair = before.judgements[judge], after.judgements[judge]
        won = with_interval(f"{judge}_win_rate", outcomes(*pair))
        if judge == comparison.judges[0]:
            result |= {name.removeprefix(f"{judge}_"): value for name, value in won.items()}
        result |= {f"{judge}_before": float(pair[0].mean()), f"{judge}_after": float(pair[1].mean())}
        result |= with_interval(f"{judge}_difference", pair[1] - pair[0]) | won
    result |= with_interval("kl", comparison.kl)
    before_figures, after_figures = _text_figures(before, decode), _text_figures(after, decode)
    for name in before_figures:
        result |= {f"{name}_before": before_figures[name], f"{name}_after": after_figures[name]}
    return result


def samples(comparison: Comparison) -> list[dict[str, Any]]:
    """Each prompt with both answers, what every judge says of them, and the KL of PPO's answer."""
    return [
        {
            "prompt": prompt,
            "before": comparison.before.texts[i],
            "after": comparison.after.texts[i],
            **{f"{judge}_before": float(comparison.before.judgements[judge][i]) for judge in comparison.judges},
            **{f"{judge}_after": float(comparison.after.judgements[judge][i]) for judge in comparison.judges},
            "kl": float(comparison.kl[i]),
            "response_length_before": len(comparison.before.tokens[i]),
            "response_length_after": len(comparison.after.tokens[i]),
        }
        for i, prompt in enumerate(comparison.prompts)
    ]


def _text_figures(answers: Answers, decode: Callable[[Sequence[int]], str]) -> dict[str, float | str]:
    phrase, share = commonest_phrase(answers.tokens)
    return {
        "response_length": float(np.mean([len(tokens) for tokens in answers.tokens])),
        "ended_share": float(np.mean(answers.ended)),
        "distinct_1": distinct_n(answers.tokens, 1),
        "distinct_2": distinct_n(answers.tokens, 2),
        "repetition": float(np.mean([repetition(tokens) for tokens in answers.tokens])),
        "commonest_phrase": decode(phrase),
        "commonest_phrase_share": share,
    }
