"""Which metrics of a stage's training are drawn, and what the page calls them; docs/ppo.md says what PPO's mean."""

from collections.abc import Mapping, Sequence

from tasks.report.facts import StageFacts
from tasks.report.plots import Chart, Line, svg

# Of each stage: title of a picture, and the metrics in it with the name of their line
LOSS = ("loss, nats per token", {"train_loss": "training", "eval_loss": "held out"})
TRAINER = (("learning rate", {"learning_rate": "learning rate"}), ("gradient norm", {"grad_norm": "gradient norm"}))
PANELS: Mapping[str, Sequence[tuple[str, Mapping[str, str]]]] = {
    "sft": (LOSS, *TRAINER),
    "reward_model": (
        ("loss", LOSS[1]),
        ("pair accuracy", {"accuracy": "training", "eval_pair_accuracy": "held out"}),
        *TRAINER,
    ),
    "ppo": (
        ("score", {"score": "rollouts", "eval_score": "held out"}),
        ("KL to SFT, nats per response", {"kl": "rollouts", "eval_kl": "held out"}),
        ("entropy, nats per token", {"entropy": "rollouts"}),
        ("response length, tokens", {"response_length": "rollouts", "eval_response_length": "held out"}),
        ("share ended by themselves", {"ended": "rollouts", "eval_ended": "held out"}),
        ("explained variance of the values", {"explained_variance": "rollouts"}),
        ("clipped share of the ratios", {"clip_fraction": "updates"}),
        ("policy loss", {"policy_loss": "updates"}),
        ("value loss", {"value_loss": "updates"}),
        ("gradient norm of the policy", {"policy_grad_norm": "updates"}),
        ("KL coefficient", {"kl_coef": "rollouts"}),
        ("tokens per second", {"tokens_per_s": "rollouts"}),
    ),
}
SECOND_SIGNAL = "score_"  # metrics of single rewards are named for them
X_LABELS = {"ppo": "iteration"}


def charts(stage: StageFacts) -> list[Chart]:
    """A chart for each of the stage's panels that has data, and for each single reward of several."""
    records = stage.metrics
    panels = list(PANELS.get(stage.name, ()))
    signals = sorted({name for record in records for name in record if name.startswith(SECOND_SIGNAL)} - {"score_std"})
    if stage.name == "ppo" and len(signals) > 1:
        panels[1:1] = [(f"score by {name.removeprefix(SECOND_SIGNAL)}", {name: "rollouts"}) for name in signals]
    events = [rewind["iteration"] for rewind in stage.report.get("rewinds", [])]
    found = [_chart(title, lines, records, stage.name, events) for title, lines in panels]
    return [chart for chart in found if chart.lines]


def pictures(stage: StageFacts) -> list[tuple[Chart, str]]:
    """The charts, each with its picture."""
    return [(chart, svg(chart)) for chart in charts(stage)]


def _chart(
    title: str, names: Mapping[str, str], records: Sequence[Mapping[str, float]], stage: str, events: Sequence[float]
) -> Chart:
    lines = []
    for name, label in names.items():
        points = [(record["step"], record[name]) for record in records if name in record]
        if points:
            x, y = zip(*points, strict=True)
            lines.append(Line(label, x, y))
    return Chart(title, lines, X_LABELS.get(stage, "step"), events)
