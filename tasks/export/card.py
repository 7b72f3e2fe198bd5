"""The model card: README.md with the hub's front matter, all of it from what the chain wrote."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from tasks.export.config import ExportConfig
from tasks.export.package import Trial
from tasks.markdown import table

LONGEST_FACT = 120
PARENTS = {
    "data": "Data",
    "sft": "SFT model",
    "reward_model": "Reward model",
    "ppo": "PPO",
    "model": "Model before export",
    "evaluation": "Evaluation",
}


@dataclass(frozen=True)
class Parent:
    """What is known of an input: its report.json, and where it came from (uri, digest, config); each may be empty."""

    report: Mapping[str, Any]
    lineage: Mapping[str, Any]


@dataclass(frozen=True)
class Facts:
    """What the card is made of."""

    parents: Mapping[str, Parent]  # by the name of the input
    results: str  # the evaluation's report, Markdown
    num_parameters: int
    dtype: str
    conversational: bool
    sampling: Mapping[str, Any]
    trial: Trial
    tree: str = ""  # of what the inputs were made of; empty where it is not known


def model_card(config: ExportConfig, facts: Facts) -> str:
    """README.md: what the model is, how to load it, results, where it comes from, and its limits."""
    sections = [
        front_matter(config),
        f"# {config.name}",
        _introduction(config, facts),
        "## How to use it",
        _usage(facts),
        "## Results",
        _demoted(facts.results),
        *_data(facts),
        "## How it was made",
        _lineage_table(facts.parents),
        *([f"~~~~text\n{facts.tree}\n~~~~"] if facts.tree else []),
        *_settings_and_figures(facts.parents),
        "## Limits",
        _limits(facts),
    ]
    return "\n\n".join(sections) + "\n"


def front_matter(config: ExportConfig) -> str:
    """The YAML block that the hub reads; what is not known is left out."""
    fields: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["rlhf", "ppo", "reinforcement-learning"],
        "base_model": config.base_model,
        "license": config.license,
        "language": config.language,
    }
    known = {name: value for name, value in fields.items() if value}
    return f"---\n{yaml.safe_dump(known, sort_keys=False, allow_unicode=True)}---"


def flatten(report: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The report's short facts by dotted name: numbers, short texts and what is nested in objects; no lists."""
    facts: dict[str, Any] = {}
    for name, value in report.items():
        if isinstance(value, Mapping):
            facts |= flatten(value, f"{prefix}{name}.")
        elif isinstance(value, int | float) or (isinstance(value, str) and len(value) <= LONGEST_FACT):
            facts[prefix + name] = value
    return facts


def _introduction(config: ExportConfig, facts: Facts) -> str:
    start = f"[{config.base_model}](https://huggingface.co/{config.base_model})" if config.base_model else None
    stages = "supervised fine-tuning, then PPO"
    if "reward_model" in facts.parents:
        stages = "supervised fine-tuning, a reward model of preferences, then PPO against its score"
    return (
        f"A causal language model ({facts.trial.loaded_class}, {facts.num_parameters:,} parameters, {facts.dtype}), "
        f"made by {stages}{f', from {start}' if start else ''}."
    )


def _usage(facts: Facts) -> str:
    prompt = json.dumps(facts.trial.prompt, ensure_ascii=False)
    ask = f'inputs = tokenizer({prompt}, return_tensors="pt")'
    if facts.conversational:
        ask = (
            f'messages = [{{"role": "user", "content": {prompt}}}]\n'
            "inputs = tokenizer.apply_chat_template(\n"
            '    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"\n)'
        )
    code = (
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'folder = "."  # where this README.md lies\n'
        "tokenizer = AutoTokenizer.from_pretrained(folder)\n"
        'model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")\n'
        f"{ask}\n"
        "output = model.generate(**inputs)\n"
        'print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))'
    )
    return (
        f"```python\n{code}\n```\n\n"
        "`generation_config.json` samples as in the evaluation. Loaded this way when it was exported "
        f"(transformers {facts.trial.transformers_version}), it answered:\n\n{_verbatim(facts.trial.answer)}\n\n"
        f"Largest difference of a logit from the model before export: {facts.trial.max_logit_difference:g}."
    )


def _data(facts: Facts) -> list[str]:
    data = facts.parents.get("data")
    return ["## Data", _facts_table(flatten(data.report))] if data else []


def _lineage_table(parents: Mapping[str, Parent]) -> str:
    rows = [
        [PARENTS.get(name, name), f"`{lineage['uri']}`" if "uri" in lineage else "", _code(lineage.get("digest"))]
        for name, lineage in ((name, parent.lineage) for name, parent in parents.items())
    ]
    return table(["From", "Address", "Digest"], rows)


def _settings_and_figures(parents: Mapping[str, Parent]) -> list[str]:
    """A section for each training stage: the options it ran with, where known, and the figures it reported."""
    sections = []
    for name in ("sft", "reward_model", "ppo"):
        if name in parents:
            sections.append(f"### {PARENTS[name]}")
            if "config" in parents[name].lineage:
                sections.append(f"```json\n{json.dumps(parents[name].lineage['config'], indent=2)}\n```")
            sections.append(_facts_table(flatten(parents[name].report)))
    return sections


def _limits(facts: Facts) -> str:
    return "\n".join(
        [
            "- The figures hold for held-out prompts of the same kind as the training prompts, sampled as in "
            f"`generation_config.json` ({_sampling(facts.sampling)}). Nothing else was measured.",
            "- Each win rate's interval covers the choice of prompts only: not another seed of the training, "
            "and not a bias of the judge.",
            "- PPO raises what its reward measures. A reward model is wrong in places, and PPO finds them: "
            "read the samples, and trust a judge that PPO never saw more than the score.",
            "- No tests of safety, truth or bias were made. What the base model and the data carry is still there.",
        ]
    )


def _sampling(sampling: Mapping[str, Any]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in sampling.items())


def _demoted(markdown: str) -> str:
    """The page two heading levels lower, without its title."""
    lines = markdown.strip().split("\n")
    body = lines[1:] if lines[0].startswith("# ") else lines
    return "\n".join(f"#{line}" if line.startswith("## ") else line for line in body).strip()


def _verbatim(text: str) -> str:
    return f"~~~~text\n{text.strip() or '(nothing)'}\n~~~~"


def _facts_table(facts: Mapping[str, Any]) -> str:
    rows = [
        [_cell(name), _cell(f"{value:.6g}" if isinstance(value, float) else value)] for name, value in facts.items()
    ]
    return table(["Figure", "Value"], rows)


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")


def _code(value: object) -> str:
    return f"`{value}`" if value else ""
