"""A page of docs/results from the summaries of several runs of one entry.

    python -m infra.results docs/results/demo.md --title "The demo" --command "make demo" demo/summary.json

One row per summary; samples and PPO's curves of the first. What the page shall say beyond that stands in --notes.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from infra.fetch import local_server
from infra.provenance import provenance
from tasks.artifacts import import_external, read_files, store_at
from tasks.markdown import escape, table

COLUMNS = {
    "SFT loss": "sft_eval_loss",
    "pair accuracy": "reward_pair_accuracy",
    "score before": "score_before",
    "score after": "score_after",
    "KL": "kl",
    "win rate": "win_rate",
    "low": "win_rate_low",
    "high": "win_rate_high",
}


def main() -> None:
    """Write the page and the picture beside it."""
    parser = argparse.ArgumentParser(description="Write a page of docs/results.")
    parser.add_argument("page", type=Path)
    parser.add_argument("summaries", type=Path, nargs="+", help="summary.json of each run")
    parser.add_argument("--title", required=True)
    parser.add_argument("--command", required=True, help="what made the summaries")
    parser.add_argument("--notes", type=Path, help="Markdown that ends the page: settings, what is not good")
    arguments = parser.parse_args()
    runs = [json.loads(path.read_text()) for path in arguments.summaries]
    picture = arguments.page.with_suffix(".png")
    picture.write_bytes(_curves(runs[0]))
    notes = arguments.notes.read_text() if arguments.notes else ""
    arguments.page.write_text(page(arguments.title, arguments.command, runs, picture.name, notes))


def page(title: str, command: str, runs: Sequence[Mapping[str, Any]], picture: str, notes: str) -> str:
    """The page's Markdown: how it was made, a row per run, curves, samples, seconds, notes."""
    return "\n\n".join(
        [
            f"# {title}",
            f"`{command}`",
            provenance(),
            table(["run", *COLUMNS], [[str(number), *_row(run)] for number, run in enumerate(runs)]),
            *_other_judges(runs),
            f"## PPO's curves, run 0\n\n![curves]({picture})",
            "## Held-out prompts of run 0, chosen by its seed",
            table(["prompt", "SFT", "PPO"], [_sample(sample) for sample in runs[0]["samples"]]),
            "## Seconds and memory",
            table(["run", *runs[0]["seconds"], "peak memory"], [_cost(n, run) for n, run in enumerate(runs)]),
            notes,
        ]
    )


def _row(run: Mapping[str, Any]) -> list[str]:
    return ["not measured" if run[name] is None else f"{run[name]:.3f}" for name in COLUMNS.values()]


def _other_judges(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """A table of the judges that the reward model never saw, if there are any."""
    rows = [
        [str(number), name, *(f"{metric[key]:.3f}" for key in ("before", "after", "win_rate"))]
        for number, run in enumerate(runs)
        for name, metric in run["metrics"].items()
    ]
    return [table(["run", "judge", "before", "after", "win rate"], rows)] if rows else []


def _sample(sample: Mapping[str, Any]) -> list[str]:
    answers = [f"{escape(sample[side])} *({sample[f'{side}_score']:+.2f})*" for side in ("sft", "ppo")]
    return [escape(sample["prompt"]), *answers]


def _cost(number: int, run: Mapping[str, Any]) -> list[str]:
    seconds = [f"{value:.0f}" for value in run["seconds"].values()]
    return [str(number), *seconds, f"{run['peak_rss_bytes'] / 2**30:.2f} GiB"]


def _curves(run: Mapping[str, Any]) -> bytes:
    uri = run["artifacts"]["ppo"]
    with local_server():
        return read_files(store_at(uri.partition("/artifacts/")[0]), import_external(uri), "curves.png")["curves.png"]


if __name__ == "__main__":
    main()
