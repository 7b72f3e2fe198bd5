"""The demo's data: customers of an imaginary shop, replies of every quality, and the rule that tells them apart.

Replies are drawn by a clerk who cares more or less, so good and poor ones stand side by side in the demonstrations
and training towards the rule has something to shift. The reward model sees only which of two replies was preferred.
"""

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tasks.prepare_data import demo_words as words

CARE = {0.1: 0.5, 0.4: 0.35, 0.85: 0.15}
"""How likely a clerk is to choose a kind sentence, and the share of such clerks."""

LABEL_NOISE = 0.05
"""Share of pairs that stand in the wrong order, as with human labels."""

Record = dict[str, str]


@dataclass(frozen=True)
class Case:
    """One customer's message and what it is about."""

    prompt: str
    item: str
    problem: str


def sft_records(seed: int = 0, num_records: int = 6000) -> Iterator[Record]:
    """Records of prompt and completion: each message with one reply, good or poor."""
    rng = random.Random(f"sft {seed}")
    for _ in range(num_records):
        case = _draw_case(rng)
        yield {"prompt": case.prompt, "completion": _draw_reply(rng, case)}


def preference_records(seed: int = 0, num_records: int = 3000) -> Iterator[Record]:
    """Records of prompt, chosen and rejected: two independent replies in the rule's order, some by mistake reversed."""
    rng = random.Random(f"preferences {seed}")
    for _ in range(num_records):
        case = _draw_case(rng)
        better, worse = _draw_pair(rng, case)
        chosen, rejected = (worse, better) if rng.random() < LABEL_NOISE else (better, worse)
        yield {"prompt": case.prompt, "chosen": chosen, "rejected": rejected}


def prompt_records(seed: int = 0, num_records: int = 2000) -> Iterator[Record]:
    """Records of a prompt alone."""
    rng = random.Random(f"prompts {seed}")
    for _ in range(num_records):
        yield {"prompt": _draw_case(rng).prompt}


def rule_score(prompts: Sequence[str], responses: Sequence[str], **columns: Any) -> list[float]:
    """A score in [-6, 5] for each response: the sum of its `score_parts`."""
    return [sum(score_parts(prompt, response).values()) for prompt, response in zip(prompts, responses, strict=True)]


def score_parts(prompt: str, response: str) -> dict[str, float]:
    """What a response earns and loses. Each merit counts once, so that saying it again gains nothing and costs."""
    text = response.strip().lower()
    own_items = _items_in(prompt)
    return {
        "courtesy": 1.0 * _has_any(text, words.COURTEOUS_WORDS),
        "names_item": 1.0 * bool(own_items & _items_in(text)),
        "names_problem": 0.5 * any(problem in prompt and problem in text for problem in words.PROBLEMS),
        "concrete_help": max((_help_in(sentence) for sentence in re.split(r"[.!?]", text)), default=0.0),
        "warmth": 0.5 * _has_any(text, words.WARM_PHRASES),
        "form": _form(text),
        "rudeness": -1.0 * min(2, sum(phrase in text for phrase in words.RUDE_PHRASES)),
        "off_topic": -1.0 * bool(_items_in(text) - own_items),
        "repetition": -2.0 * _repeated_share(text),
    }


def _draw_case(rng: random.Random) -> Case:
    kind = rng.choice(list(words.ITEMS_BY_KIND))
    item = rng.choice(words.ITEMS_BY_KIND[kind])
    problem = rng.choice(words.PROBLEMS_BY_KIND[kind] + words.PROBLEMS_BY_KIND["any"])
    sentences = [rng.choice(part) for part in (words.GREETINGS, words.COMPLAINTS, words.FEELINGS, words.REQUESTS)]
    message = _spell_out(
        rng,
        sentences,
        item=item,
        problem=problem,
        adjective=rng.choice(words.ADJECTIVES),
        name=rng.choice(words.NAMES),
        person=rng.choice(words.PEOPLE),
        bought=rng.choice(words.BOUGHT),
    )
    return Case(f"Customer: {message}\nShop:", item, problem)


def _draw_reply(rng: random.Random, case: Case) -> str:
    care = rng.choices(list(CARE), list(CARE.values()))[0]
    parts = (
        (words.KIND_OPENINGS, words.POOR_OPENINGS),
        (words.KIND_STEPS, words.POOR_STEPS),
        (words.KIND_CLOSINGS, words.POOR_CLOSINGS),
    )
    sentences = [rng.choice(kind if rng.random() < care else poor) for kind, poor in parts]
    reply = _spell_out(
        rng,
        sentences,
        item=case.item,
        problem=case.problem,
        other=rng.choice([item for item in words.ITEMS if item != case.item]),
        soon=rng.choice(words.SOON),
        early=rng.choice(words.EARLY),
    )
    return f" {reply}"


def _spell_out(rng: random.Random, sentences: Sequence[str], **values: str) -> str:
    """The sentences as one text: of each `(a|b)` one alternative, each `{name}` by its value."""
    text = " ".join(sentence for sentence in sentences if sentence)
    chosen = re.sub(r"\(([^()]*)\)", lambda group: rng.choice(group[1].split("|")), text)
    return chosen.format(**values)


def _draw_pair(rng: random.Random, case: Case) -> tuple[str, str]:
    """Two replies whose scores differ, the better one first."""
    while True:
        replies = [_draw_reply(rng, case), _draw_reply(rng, case)]
        first, second = rule_score([case.prompt] * 2, replies)
        if first != second:
            return (replies[0], replies[1]) if first > second else (replies[1], replies[0])


def _help_in(sentence: str) -> float:
    """1.5 for an action with a time, 0.5 for an action without."""
    if not _has_any(sentence, words.HELPING_WORDS):
        return 0.0
    return 1.5 if _has_any(sentence, words.TIMES) else 0.5


def _form(text: str) -> float:
    """0.5 for a whole reply of 8 to 40 words, -1 for one under 5 words."""
    num_words = len(text.split())
    if num_words < 5:
        return -1.0
    return 0.5 if 8 <= num_words <= 40 and text.endswith((".", "!", "?")) else 0.0


def _repeated_share(text: str) -> float:
    """Share of the three-word sequences that were said before."""
    tokens = re.findall(r"\w+", text)
    triples = list(zip(tokens, tokens[1:], tokens[2:], strict=False))
    return 1 - len(set(triples)) / len(triples) if triples else 0.0


def _items_in(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower())) & set(words.ITEMS)


def _has_any(text: str, phrases: Sequence[str]) -> bool:
    return re.search(rf"\b({'|'.join(phrases)})\b", text) is not None
