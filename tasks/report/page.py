"""The page of a run: one HTML file that needs nothing beside itself."""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import yaml

from tasks.evaluate.names import LABELS
from tasks.flattening import short_facts
from tasks.lineage import changed_options
from tasks.report import curves, lineage
from tasks.report.facts import RunFacts, StageFacts
from tasks.report.figures import comparison, headline, sides_in, tiles, win_rates
from tasks.report.plots import Chart
from tasks.report.rendering import duration, figure, render
from tasks.report.samples import Group, sample_groups
from tasks.retention.runs import RunRecord
from tasks.rules import ACCEPTED, FAILED, NOT_APPLICABLE, PASSED

TONES = {PASSED: "good", FAILED: "bad", NOT_APPLICABLE: "", ACCEPTED: "wait"}
TITLES = {"sft": "SFT", "reward_model": "Reward model", "ppo": "PPO", "second_reward_model": "Second reward model"}


@dataclass(frozen=True)
class Training:
    """A stage with curves."""

    name: str
    title: str
    pictures: Sequence[tuple[Chart, str]]
    figures: Mapping[str, Any]
    rewinds: Sequence[str]


@dataclass(frozen=True)
class Certificate:
    """What the reward model's certificate says."""

    sentence: str
    verdicts: Sequence[Mapping[str, Any]]  # of its thresholds
    sheet: str  # PNG, base64; empty where there is none
    figures: Mapping[str, Any]


@dataclass(frozen=True)
class StageCost:
    """A row of the table of time and memory."""

    name: str
    time: str
    share: float  # of the longest stage
    memory: str
    state: str


def run_page(facts: RunFacts, store: str) -> str:
    """The page; `store` is the address that it was made from."""
    record, evaluation = facts.record, facts.stage("evaluate")
    report = evaluation.report if evaluation else {}
    certificate = _certificate(facts.stage("certify"))
    found_trainings = {stage.role: _training(stage) for stage in facts.stages}
    trainings = [training for training in found_trainings.values() if training.pictures]
    groups = sample_groups(evaluation) if evaluation else []
    found = lineage.rows(facts)
    return render(
        "run.html.j2",
        facts=facts,
        store=store,
        headline=headline(record),
        tiles=tiles(facts),
        tones=TONES,
        duration=duration_of(record),
        figures=report,
        win_rates=win_rates(report),
        sides=sides_in(report),
        labels=LABELS,
        comparison=comparison(report),
        samples=groups,
        certificate=certificate,
        trainings=trainings,
        costs=_costs(facts.stages),
        lineage=lineage.picture(found),
        lineage_in_words=lineage.in_words(found),
        overrides=_texts({name: value for name, value in record.overrides.items() if value is not None}),
        configs=_configs(facts.stages),
        options_yaml=yaml.safe_dump(record.options, sort_keys=False, allow_unicode=True) if record.options else "",
        versions=_versions(facts.stages),
        sections=_sections(facts, bool(report), groups, certificate is not None, trainings),
    )


def duration_of(record: RunRecord) -> str:
    """How long the run took; empty where it has not ended."""
    if record.ended is None:
        return ""
    return duration((datetime.fromisoformat(record.ended) - datetime.fromisoformat(record.started)).total_seconds())


def _sections(
    facts: RunFacts, evaluated: bool, groups: Sequence[Group], certified: bool, trainings: Sequence[Training]
) -> list[tuple[str, str]]:
    """Anchor and name of each section that there is."""
    sections = [
        ("gate", "Gate", bool(facts.record.verdicts)),
        ("evaluation", "Evaluation", evaluated),
        *((group.anchor, group.title, True) for group in groups),
        ("certificate", "Certificate", certified),
        *((training.name, training.title, True) for training in trainings),
        ("cost", "Time and memory", bool(facts.stages)),
        ("lineage", "Lineage", bool(facts.stages)),
        ("config", "Config", True),
    ]
    return [(anchor, name) for anchor, name, there in sections if there]


def _training(stage: StageFacts) -> Training:
    rewinds = [
        f"at iteration {rewind['iteration']} to {rewind['to_iteration']}, for "
        + ", ".join(f"{alarm['name']} ({figure(alarm['value'])})" for alarm in rewind["alarms"])
        for rewind in stage.report.get("rewinds", [])
    ]
    return Training(
        stage.role, TITLES.get(stage.role, stage.role), curves.pictures(stage), short_facts(stage.report), rewinds
    )


def _certificate(stage: StageFacts | None) -> Certificate | None:
    if stage is None or not stage.report:
        return None
    report = stage.report
    sheet = base64.b64encode(stage.files.get("certificate.png", b"")).decode()
    return Certificate(report.get("verdict", ""), report.get("verdicts", []), sheet, short_facts(report))


def _costs(stages: Sequence[StageFacts]) -> list[StageCost]:
    longest = max((stage.cost.get("seconds", 0.0) for stage in stages), default=0.0) or 1.0
    return [
        StageCost(
            name=stage.role,
            time=duration(stage.cost["seconds"]) if stage.cost else "not known",
            share=round(stage.cost.get("seconds", 0.0) / longest, 4),
            memory=_gib(stage.cost.get("peak_rss_bytes")),
            state="was done already" if stage.run.already_done else "computed",
        )
        for stage in stages
    ]


def _gib(size_bytes: float | None) -> str:
    return "not known" if size_bytes is None else f"{size_bytes / 2**30:.2f} GiB"


def _configs(stages: Sequence[StageFacts]) -> list[tuple[str, Mapping[str, Any]]]:
    """Of each stage the options that differ from its defaults."""
    known = [stage for stage in stages if stage.origin]
    return [(stage.role, _texts(changed_options(stage.name, stage.origin["config"]))) for stage in known]


def _texts(options: Mapping[str, Any]) -> dict[str, Any]:
    """Each value as JSON; a text without its quotes unless it is blank or begins or ends so."""
    return {
        name: value
        if isinstance(value, str) and value.strip() == value != ""
        else json.dumps(value, ensure_ascii=False)
        for name, value in options.items()
    }


def _versions(stages: Sequence[StageFacts]) -> dict[str, str]:
    """Code version of each stage, and the libraries of the last."""
    known = [stage for stage in stages if stage.origin]
    codes = {f"code of {stage.role}": stage.origin["code_version"] for stage in known}
    return codes | (known[-1].origin["libraries"] if known else {})
