"""CPU seconds, wall seconds and tokens of each iteration of a trainer, and the peak memory of its process.

Imported by TRL's environment too.
"""

import json
import resource
import time
from collections.abc import Mapping
from pathlib import Path

Record = dict[str, float | dict[str, float]]


class Stopwatch:
    """Told what a trainer has just done, it notes what that took. The first iteration is not counted."""

    def __init__(self) -> None:
        self.laps: list[Record] = []
        self.phases: dict[str, float] = {}
        self.num_tokens = self.num_episodes = 0
        self.started = self.marked = now()

    def phase(self, name: str) -> None:
        """What was done since the last phase, or since the iteration began, was this."""
        time_now = now()
        self.phases[name] = self.phases.get(name, 0.0) + time_now[0] - self.marked[0]
        self.marked = time_now

    def count(self, num_tokens: int, num_episodes: int) -> None:
        """So many response tokens were sampled for so many episodes."""
        self.num_tokens += num_tokens
        self.num_episodes += num_episodes

    def lap(self) -> None:
        """An iteration is over."""
        cpu, wall = (after - before for after, before in zip(now(), self.started, strict=True))
        self.laps.append(
            {
                "cpu_s": cpu,
                "wall_s": wall,
                "phases": self.phases,
                "num_tokens": self.num_tokens,
                "response_length": self.num_tokens / self.num_episodes,
            }
        )
        self.phases, self.num_tokens, self.num_episodes = {}, 0, 0
        self.started = self.marked = now()

    def write(self, path: Path, settings: Mapping[str, object]) -> None:
        """Write the iterations after the first as JSON."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        content = {"settings": dict(settings), "peak_rss_bytes": peak, "iterations": self.laps[1:]}
        path.write_text(json.dumps(content, indent=1, default=str) + "\n")


def now() -> tuple[float, float]:
    """CPU seconds of this process, all its threads together, and wall seconds."""
    return time.process_time(), time.perf_counter()
