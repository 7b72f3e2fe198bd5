"""The model card: README.md with the hub's front matter, all of it from what the chain wrote."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tasks.export.config import ExportConfig
from tasks.export.front_matter import front_matter
from tasks.export.origins import UNKNOWN, Origins
from tasks.export.parents import Parent
from tasks.export.reproduction import COMMAND, REPRODUCE, Reproduction
from tasks.export.serving import SERVE
from tasks.export.trial import Trial
from tasks.flattening import short_facts
from tasks.markdown import table

PARENTS = {
    "data": "Data",
    "sft": "SFT model",
    "reward_model": "Reward model",
    "second_reward_model": "Second reward model",
    "certificate": "Certificate of the reward model",
    "ppo": "PPO",
    "model": "Model before export",
    "evaluation": "Evaluation",
}
TRAINED = ("sft", "reward_model", "second_reward_model", "certificate", "ppo")


@dataclass(frozen=True)
class Facts:
    """What the card is made of."""

    parents: Mapping[str, Parent]  # by the name of the input
    origins: Origins
    reproduction: Reproduction
    results: str  # the evaluation's report, Markdown; empty where there was no evaluation
    num_parameters: int
    dtype: str
    conversational: bool
    sampling: Mapping[str, Any]
    trial: Trial
    serve: str  # vLLM's command
    forms: Mapping[str, Trial] = field(default_factory=dict)  # by the folder or file of each further form
    tree: str = ""  # of what the inputs were made of; empty where it is not known


def model_card(config: ExportConfig, facts: Facts) -> str:
    """README.md: what the model is, how to load it, results, where it comes from, its limits, how to make it again."""
    results = ["## Results", _demoted(facts.results)] if facts.results else []
    sections = [
        front_matter(config, facts.origins),
        f"# {config.name}",
        _introduction(facts),
        "## How to use it",
        _usage(facts),
        *_forms(facts.forms),
        "## Server",
        _server(facts, config.modelfile),
        *results,
        *_data(facts),
        "## How it was made",
        _lineage_table(facts.parents),
        *([f"~~~~text\n{facts.tree}\n~~~~"] if facts.tree else []),
        *_settings_and_figures(facts.parents),
        "## How to make it again",
        _reproduction(facts.reproduction),
        "## Licences",
        _licences(facts.origins),
        "## Limits",
        _limits(facts),
    ]
    return "\n\n".join(sections) + "\n"


def _introduction(facts: Facts) -> str:
    base = facts.origins.base_model
    start = f", from [{base}](https://huggingface.co/{base})" if base else ""
    what = f"A causal language model ({facts.trial.loaded_class}, {facts.num_parameters:,} parameters, {facts.dtype})"
    if "ppo" not in facts.parents:
        return f"{what}{start}."
    stages = "supervised fine-tuning, then PPO"
    if "reward_model" in facts.parents:
        stages = "supervised fine-tuning, a reward model of preferences, then PPO against its score"
    return f"{what}, made by {stages}{start}."


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
        f"{'`generation_config.json` samples as in the evaluation. ' if facts.sampling else ''}"
        "Loaded this way when it was exported "
        f"(transformers {facts.trial.transformers_version}), it answered:\n\n{_verbatim(facts.trial.answer)}\n\n"
        f"Largest difference of a logit from the model before export: {facts.trial.max_logit_difference:g}."
    )


def _forms(forms: Mapping[str, Trial]) -> list[str]:
    """The further forms, where there are any: how each is loaded, and how far it is from the model before export."""
    rows = [
        [
            f"`{name}`",
            trial.loads_with,
            f"{trial.max_logit_difference:.3g} of {trial.max_logit:.3g}",
            f"{trial.num_greedy_texts_equal} of {trial.num_greedy_texts}",
        ]
        for name, trial in forms.items()
    ]
    head = ["In", "Loads with", "Largest difference of a logit", "Greedy texts equal"]
    return [f"### Other forms\n\n{table(head, rows)}"] if forms else []


def _server(facts: Facts, has_modelfile: bool) -> str:
    vllm = f"```sh\n{facts.serve}\n```\n\nor `sh {SERVE}`: vLLM, which was not tried here, with this model's options."
    ollama = (
        "\n\n`ollama create NAME` in this folder reads the `Modelfile`. Its turns were compared with the tokenizer's "
        "chat template; Ollama itself was not tried here."
    )
    return vllm + (ollama if has_modelfile else "")


def _data(facts: Facts) -> list[str]:
    if "data" not in facts.parents:
        return []
    files = [[f"`{file.name}`", f"{file.size_bytes:,}", f"`{file.sha256}`"] for file in facts.origins.data_files]
    hashes = [table(["File", "Bytes", "SHA-256"], files)] if files else []
    return ["## Data", *hashes, _facts_table(short_facts(facts.parents["data"].report))]


def _reproduction(how: Reproduction) -> str:
    commit = f"`{how.commit}`" if how.commit else UNKNOWN
    versions = ", ".join(f"{name} {number}" for name, number in how.versions.items())
    lines = [f"- Commit of the program: {commit}", f"- Versions: {versions}"]
    if how.seeds:
        seeds = ", ".join(f"{name} {seed}" for name, seed in how.seeds.items())
        lines += [f"- Command: `{COMMAND}`", f"- Seeds: {seeds}"]
        lines += [
            f"- [{REPRODUCE}]({REPRODUCE}) holds every option of the chain, with an open gate. Equal bits take the "
            "same data, hardware and number of processes as well."
        ]
    else:
        lines += ["- The lineage was not given to the export: with which options the model was made is unknown."]
    return "\n".join(lines)


def _licences(origins: Origins) -> str:
    datasets = ", ".join(f"[{name}](https://huggingface.co/datasets/{name})" for name in origins.datasets)
    return "\n".join(
        [
            f"- Model: **{origins.license}** ({origins.license_source}).",
            f"- Base model: {origins.base_model or 'none, or not known'}; its terms go on applying.",
            f"- Data: **{origins.data_license}**{f'; from {datasets}' if datasets else ''}.",
        ]
    )


def _lineage_table(parents: Mapping[str, Parent]) -> str:
    rows = [
        [PARENTS.get(name, name), f"`{lineage['uri']}`" if "uri" in lineage else "", _code(lineage.get("digest"))]
        for name, lineage in ((name, parent.lineage) for name, parent in parents.items())
    ]
    return table(["From", "Address", "Digest"], rows)


def _settings_and_figures(parents: Mapping[str, Parent]) -> list[str]:
    """A section for each training stage: the options it ran with, where known, and the figures it reported."""
    sections = []
    for name in TRAINED:
        if name in parents:
            sections.append(f"### {PARENTS[name]}")
            if "config" in parents[name].lineage:
                sections.append(f"```json\n{json.dumps(parents[name].lineage['config'], indent=2)}\n```")
            sections.append(_facts_table(short_facts(parents[name].report)))
    return sections


def _limits(facts: Facts) -> str:
    measured = [
        "- The figures hold for held-out prompts of the same kind as the training prompts, sampled as in "
        f"`generation_config.json` ({_sampling(facts.sampling)}). Nothing else was measured.",
        "- Each win rate's interval covers the choice of prompts only: not another seed of the training, "
        "and not a bias of the judge.",
    ]
    if not facts.results:
        measured = ["- This model was not evaluated when it was exported."]
    return "\n".join(
        [
            *measured,
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
