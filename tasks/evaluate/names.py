"""What the evaluation's figures are called, and what each means. Knows no torch."""

from collections.abc import Collection, Mapping

SCORE, SECOND_SCORE = "score", "second_score"
HARNESS = "harness_"  # before TASK_METRIC_SIDE
SIDES = {"sft": "before", "ppo": "after", "champion": "champion", "base": "base"}  # of each candidate, in names
LABELS = {"base": "Base", "before": "SFT", "champion": "Champion", "after": "PPO"}  # of each side, for readers
OTHERS = ("champion", "base")
PAIRS = ("", "champion_", "greedy_", "greedy_champion_")  # before the names of what compares PPO with a rival
MODES = ("", "greedy_")
LLM_PAIRS = ("", "champion_")
ENDS = ("", "_low", "_high")
WIN_RATE_PARTS = (*ENDS, "_p_value", "_length_controlled")

# Rows of a table of what answers are like: a name for the reader, the figure's, its format
PERPLEXITY_ROW = ("Perplexity on held-out SFT records", "perplexity", ".3f")
ANSWER_ROWS = (
    ("Response length, tokens", "response_length", ".1f"),
    ("Ended by themselves", "ended_share", ".1%"),
    ("Distinct-1", "distinct_1", ".3f"),
    ("Distinct-2", "distinct_2", ".3f"),
    ("Repeated 4-grams within a response", "repetition", ".1%"),
    ("Responses with the commonest 4-gram", "commonest_phrase_share", ".1%"),
)

PAIR_MEANINGS = {
    "{pair}win_rate": "share of prompts on which PPO's answer is the higher by `judge`; a tie counts half. The "
    "rival is SFT, or with champion_ the champion; with greedy_ all answers are greedy",
    "{pair}{judge}_win_rate": "the same by this judge",
    "{pair}{judge}_difference": "mean of PPO's minus the rival's, by this judge",
}
PART_MEANINGS = {
    "*_low": "lower end of the figure's 95 % bootstrap interval, prompts resampled",
    "*_high": "upper end of that interval",
    "*_p_value": "exact two-sided sign test of win rate 1/2: wins against losses, ties left out",
    "*_length_controlled": "the win rate that a logistic regression gives where both answers are equally long",
}
MODE_MEANINGS = {
    "{mode}{judge}_{side}": "mean by this judge over SFT's answers (before), PPO's (after), the champion's, the base's",
    "{mode}win_rate_{other}": "win rate of the champion, or the base, over SFT by `judge`",
    "{mode}response_length_{side}": "mean tokens of a response, its end token left out",
    "{mode}ended_share_{side}": "share of responses that ended by themselves within the allowed length",
    "{mode}distinct_1_{side}": "different tokens / all tokens, over all responses",
    "{mode}distinct_2_{side}": "different pairs of neighbours / all pairs, over all responses",
    "{mode}repetition_{side}": "mean share of a response's 4-grams that occurred in it before",
    "{mode}commonest_phrase_{side}": "the 4-gram that stands in the most responses",
    "{mode}commonest_phrase_share_{side}": "share of responses in which it stands",
}
LLM_MEANINGS = {
    "{llm_pair}{llm}_win_rate": "win rate by the language model: the mean of its verdicts in both orders",
    "{llm_pair}{llm}_position_bias": "share of verdicts for the answer shown first, less those for the second",
    "{llm_pair}{llm}_agreement": "share of prompts on which the verdicts in both orders agree",
    "{llm_pair}{llm}_tie_share": "share of prompts on which the mean of both verdicts is a tie",
    "{llm_pair}{llm}_unread_share": "share of replies without a verdict, which count as ties",
}
SINGLE_MEANINGS = {
    "num_prompts": "held-out prompts that every model answered",
    "judge": "whose win rate is the verdict: the reward model's score, or the first metric where there is none",
    "kl": "KL(PPO || SFT) of whole responses in nats: mean over PPO's own responses of the summed log ratio",
    "kl_{other}": "the same of the champion, or the base",
    "perplexity_{side}": "exp of the mean negative log-likelihood of a completion token of held-out SFT records",
    "tax": "alignment tax: perplexity_after / perplexity_before - 1",
    "tax_champion": "the same of the champion",
    "harness_*": "a task's metric by the lm-evaluation-harness, of the model at the name's end",
    "num_canaries": "prompts that are always asked",
    "canary_changed": "share of canaries that PPO answers otherwise than SFT",
    "champion_canary_changed": "share of canaries that PPO answers otherwise than the champion",
}
MEANINGS = PAIR_MEANINGS | PART_MEANINGS | MODE_MEANINGS | LLM_MEANINGS | SINGLE_MEANINGS
WITH_ENDS = ("{pair}{judge}_difference", "{mode}win_rate_{other}", "kl", "kl_{other}")
WITH_WIN_RATE_PARTS = ("{pair}win_rate", "{pair}{judge}_win_rate", "{llm_pair}{llm}_win_rate")
RESERVED_JUDGES = (
    *(SCORE, SECOND_SCORE, "win_rate", "kl", "perplexity", "tax", "canary", "champion", "greedy", "base", "harness"),
    *(name.removeprefix("{mode}").removesuffix("_{side}") for name in MODE_MEANINGS if "{judge}" not in name),
)


def judge_names(metrics: Collection[str], has_reward_model: bool, has_second_reward_model: bool) -> list[str]:
    """The judges that give each answer a number; the first one gives the verdict."""
    return [SCORE] * has_reward_model + [SECOND_SCORE] * has_second_reward_model + list(metrics)


def possible_figures(judges: Collection[str], llm: str | None, has_harness: bool = False) -> list[str]:
    """Every name that a figure of such an evaluation can have; a champion, a base and SFT data may be missing.

    `*` in a name stands for any text.
    """
    patterns = [name for name in MEANINGS if name not in PART_MEANINGS and (has_harness or name != f"{HARNESS}*")]
    parts = dict.fromkeys(WITH_ENDS, ENDS) | dict.fromkeys(WITH_WIN_RATE_PARTS, WIN_RATE_PARTS)
    choices: Mapping[str, Collection[str]] = {
        "pair": PAIRS,
        "llm_pair": LLM_PAIRS,
        "mode": MODES,
        "judge": judges,
        "llm": [] if llm is None else [llm],
        "side": list(SIDES.values()),
        "other": OTHERS,
    }
    names = [pattern + part for pattern in patterns for part in parts.get(pattern, ("",))]
    for place, values in choices.items():
        mark = f"{{{place}}}"
        names = [name.replace(mark, value) for name in names for value in (values if mark in name else [""])]
    return names
