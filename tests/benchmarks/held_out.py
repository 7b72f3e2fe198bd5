"""What a policy's answers to held-out prompts are worth, measured in one way for both trainers.

Imported by TRL's environment too.

Shapes: B prompts, P tokens of the longest, R response tokens at most, T = P + R.
"""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer

NUM_PROMPTS = 128
RESPONSE_LENGTH = 48
SEED = 0
EVERY = 4  # iterations


@dataclass
class Course:
    """How a training goes: figures of held-out answers over episodes and CPU seconds, those of measuring left out."""

    task: Path
    policy: Callable[[], Any]  # the model as it is now; what was given before must not be run any more
    reference: Callable[[], Any]
    batch_size: int
    points: list[dict[str, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(self.task / "policy", padding_side="left")
        self.reward_model = AutoModelForSequenceClassification.from_pretrained(self.task / "reward_model").eval()
        self.offset = json.loads((self.task / "reward_model" / "scalar_head.json").read_text())["offset"]
        texts = json.loads((self.task / "prompts_test.json").read_text())[:NUM_PROMPTS]
        self.prompts = self.tokenizer(texts, padding=True, return_tensors="pt")
        self.cpu_s = self.wall_s = 0.0
        self.iteration = 0
        self._measure()
        self.resumed = time.process_time(), time.perf_counter()

    def iteration_ended(self) -> None:
        """Note a point of the course after every few iterations."""
        now = time.process_time(), time.perf_counter()
        self.cpu_s, self.wall_s = self.cpu_s + now[0] - self.resumed[0], self.wall_s + now[1] - self.resumed[1]
        self.iteration += 1
        if self.iteration % EVERY == 0:
            self._measure()
        self.resumed = time.process_time(), time.perf_counter()

    def write(self, path: Path, settings: Mapping[str, object]) -> None:
        """Write the points as JSON."""
        path.write_text(json.dumps({"settings": dict(settings), "points": self.points}, indent=1, default=str) + "\n")

    def _measure(self) -> None:
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(SEED)
            figures = self._figures()
        episodes = self.iteration * self.batch_size
        self.points.append({"episodes": episodes, "cpu_s": self.cpu_s, "wall_s": self.wall_s, **figures})

    def _figures(self) -> dict[str, float]:
        """Mean score, KL of a response in nats, share that ended, and distinct pairs of words among all."""
        model = self.policy()
        was_training = model.training
        ids = model.eval().generate(
            **self.prompts,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_new_tokens=RESPONSE_LENGTH,
            eos_token_id=self.tokenizer.eos_token_id,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        length = self.prompts["input_ids"].shape[1]
        is_end = ids[:, length:] == self.tokenizer.eos_token_id
        counts = is_end.cumsum(1) - is_end.long() == 0  # [B, R] response tokens, the end included
        mask = torch.cat([self.prompts["attention_mask"].bool(), counts], dim=1)
        differences = _logprobs(self.policy(), ids, mask, length)
        model.train(was_training)
        differences = differences - _logprobs(self.reference(), ids, mask, length)
        return {
            "score": self._scores(ids, mask).mean().item(),
            "kl": (differences * counts).sum(1).mean().item(),
            "ended": (is_end & counts).any(1).float().mean().item(),
            "distinct_2": _distinct_pairs(ids[:, length:], counts),
        }

    def _scores(self, ids: Tensor, mask: Tensor) -> Tensor:
        hidden = self.reward_model.model(input_ids=ids, attention_mask=mask.long(), position_ids=_positions(mask))
        last = (torch.arange(mask.shape[1]) * mask).argmax(1)
        return self.reward_model.score(hidden.last_hidden_state[torch.arange(len(ids)), last])[:, 0] - self.offset


def _logprobs(model: Any, ids: Tensor, mask: Tensor, length: int) -> Tensor:
    """Logprobs [B, R] of what stands at and after `length`."""
    logits = model(input_ids=ids, attention_mask=mask.long(), position_ids=_positions(mask)).logits[:, length - 1 : -1]
    return torch.log_softmax(logits.float(), -1).gather(2, ids[:, length:, None])[..., 0]


def _positions(mask: Tensor) -> Tensor:
    return (mask.long().cumsum(1) - 1).clamp(min=0)


def _distinct_pairs(ids: Tensor, counts: Tensor) -> float:
    rows = [row[count].tolist() for row, count in zip(ids, counts, strict=True)]
    pairs = [pair for row in rows for pair in pairwise(row)]
    return len(set(pairs)) / max(1, len(pairs))
