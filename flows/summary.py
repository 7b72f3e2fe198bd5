"""What a person wants to see at the end of a run."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from pydantic import Field

from tasks.artifacts import Artifact
from tasks.champion import Champion
from tasks.config import Config
from tasks.display import read_report
from tasks.lineage import tree_of_inputs
from tasks.rules import Verdict, as_markdown
from tasks.runner import Workplace


class Sample(Config):
    """A held-out prompt with both models' answers and their scores."""

    prompt: str
    sft: str
    ppo: str
    sft_score: float
    ppo_score: float

    def as_markdown(self) -> str:
        """The prompt, and a line for each answer."""
        answers = (("SFT", self.sft_score, self.sft), ("PPO", self.ppo_score, self.ppo))
        lines = [f"- {model} ({score:+.2f}): {answer}" for model, score, answer in answers]
        return "\n".join([f"**{self.prompt}**", "", *lines])


class Metric(Config):
    """Another judge than the reward model: its means before and after PPO, and PPO's win rate by it."""

    before: float
    after: float
    win_rate: float


class Summary(Config):
    """The chain's figures. A stage that was replaced by something that exists has none."""

    sft_eval_loss: float | None = Field(description="Held-out loss of SFT, nats per completion token.")
    reward_pair_accuracy: float | None = Field(
        description="Share of held-out pairs that the reward model orders right."
    )
    certificate: list[Verdict] = Field([], description="The verdict of every threshold of the reward model's.")
    score_before: float = Field(
        description="Mean score of SFT's answers to held-out prompts; without a reward model, by the first metric."
    )
    score_after: float = Field(description="Mean score of PPO's.")
    kl: float = Field(description="KL of PPO to SFT, nats per response.")
    win_rate: float = Field(description="Share of held-out prompts where PPO's answer scores higher; ties count half.")
    win_rate_low: float = Field(description="Lower end of its 95 % interval.")
    win_rate_high: float = Field(description="Upper end of its 95 % interval.")
    metrics: dict[str, Metric] = Field(description="The same by each other judge.")
    champion_before: str | None = Field(description="Where the champion lies that the model was compared with.")
    champion_win_rate: float | None = Field(description="Win rate over that champion.")
    gate: list[Verdict] = Field(description="The verdict of every rule.")
    samples: list[Sample] = Field(description="Held-out prompts with both answers, chosen by the seed.")
    artifacts: dict[str, str] = Field(description="Where each stage's artifact lies.")
    page: str | None = Field(None, description="Where the run's page will lie: an HTML file.")
    lineage: str = Field("", description="What the export was made of, as lines of text.")

    @property
    def export_uri(self) -> str:
        """Where the exported model lies."""
        return self.artifacts["export"]

    def as_markdown(self) -> str:
        """A table of the figures, the samples side by side, and the lineage."""
        rows = "\n".join(f"| {name} | {value} |" for name, value in self.figures().items())
        samples = "\n\n".join(sample.as_markdown() for sample in self.samples)
        lineage = f"\n## Lineage\n\n~~~~text\n{self.lineage}\n~~~~\n" if self.lineage else ""
        return f"| figure | value |\n|---|---|\n{rows}\n\n{as_markdown(self.gate)}\n\n{samples}\n{lineage}"

    def figures(self) -> dict[str, str]:
        """Each figure's name and value as text, in the order of the chain."""
        figures = {
            "SFT loss, held out": _optional(self.sft_eval_loss),
            "pair accuracy, held out": _optional(self.reward_pair_accuracy),
            "certificate": _counted(self.certificate) or "none",
            "score before → after PPO": f"{self.score_before:.3f} → {self.score_after:.3f}",
        }
        for name, metric in self.metrics.items():
            figures[f"{name} before → after PPO"] = (
                f"{metric.before:.3f} → {metric.after:.3f} (win rate {metric.win_rate:.3f})"
            )
        return figures | {
            "KL to SFT, nats per response": f"{self.kl:.2f}",
            "win rate over SFT": f"{self.win_rate:.3f} (95 %: {self.win_rate_low:.3f} to {self.win_rate_high:.3f})",
            "win rate over the champion": "no champion yet"
            if self.champion_before is None
            else f"{_optional(self.champion_win_rate)} ({self.champion_before})",
            "gate": _counted(self.gate) or "no rules",
            "evaluation": f"{self.artifacts['evaluate']} (report.md)",
            "page of the run": self.page or "none: this run keeps no record",
            "export": self.export_uri,
        }


def summarise(
    artifacts: Mapping[str, Artifact | None], verdicts: list[Verdict], rival: Champion | None, place: Workplace
) -> Summary:
    """The run's figures, from the reports of its artifacts by stage."""
    made = {stage: artifact for stage, artifact in artifacts.items() if artifact is not None}
    measured = read_report(made["evaluate"], place)
    judge = measured["judge"]
    return Summary(
        sft_eval_loss=_figure(made["sft"], "eval_loss", place),
        reward_pair_accuracy=_figure(made.get("reward_model"), "pair_accuracy", place),
        certificate=read_report(made["certificate"], place)["verdicts"] if "certificate" in made else [],
        score_before=measured[f"{judge}_before"],
        score_after=measured[f"{judge}_after"],
        **{name: measured[name] for name in ("kl", "win_rate", "win_rate_low", "win_rate_high")},
        metrics=_metrics(measured),
        champion_before=None if rival is None else rival.uri,
        champion_win_rate=measured.get("champion_win_rate"),
        gate=verdicts,
        samples=[_sample(sample, judge) for sample in measured["samples"]],
        artifacts={stage: artifact.uri for stage, artifact in made.items()},
        page=None if place.run is None else place.run.page_uri,
        lineage=tree_of_inputs(place.store, {"export": made["export"]}),
    )


def _metrics(measured: Mapping[str, Any]) -> dict[str, Metric]:
    return {
        name: Metric(
            before=measured[f"{name}_before"], after=measured[f"{name}_after"], win_rate=measured[f"{name}_win_rate"]
        )
        for name in measured["judges"]
        if name != measured["judge"]
    }


def _sample(sample: Mapping[str, Any], judge: str) -> Sample:
    return Sample(
        prompt=sample["prompt"],
        sft=sample["before"].strip(),
        ppo=sample["after"].strip(),
        sft_score=sample[f"{judge}_before"],
        ppo_score=sample[f"{judge}_after"],
    )


def _counted(verdicts: list[Verdict]) -> str:
    counts = Counter(verdict.verdict for verdict in verdicts)
    return ", ".join(f"{count} {verdict}" for verdict, count in counts.items())


def _figure(artifact: Artifact | None, name: str, place: Workplace) -> float | None:
    return None if artifact is None else read_report(artifact, place).get(name)


def _optional(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.3f}"
