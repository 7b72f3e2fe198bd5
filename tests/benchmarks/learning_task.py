"""The task that both trainers learn: the demo's data, SFT model and reward model, with four layers instead of two.

Written by the programs of our own stages, with the options of the entry `demo` in pipelines.yaml.
"""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from infra.entries import read_entries
from tasks.data import read_split

PIPELINES = Path(__file__).parents[2] / "pipelines.yaml"
NUM_LAYERS = 4
NUM_HELD_OUT = 128


def write_task(folder: Path) -> None:
    """Make folders data, policy and reward_model, and the prompts as JSON; what is there already stays."""
    pipeline = read_entries(PIPELINES)["demo"].parameters.pipeline.model_dump(mode="json")
    pipeline["sft"]["from_scratch"]["num_layers"] = NUM_LAYERS
    folder.mkdir(parents=True, exist_ok=True)
    data, policy = folder / "data", folder / "policy"
    _run_stage("tasks.prepare_data.run", pipeline["prepare_data"], {}, data)
    _run_stage("tasks.sft.train", pipeline["sft"], {"data": data}, policy)
    _run_stage(
        "tasks.reward_model.train", pipeline["reward_model"], {"data": data, "model": policy}, folder / "reward_model"
    )
    for split in ("train", "test"):
        prompts = [record["prompt"] for record in read_split(data, "prompts", split)]
        (folder / f"prompts_{split}.json").write_text(json.dumps(prompts))


def _run_stage(module: str, config: Mapping[str, Any], inputs: Mapping[str, Path], output: Path) -> None:
    if (output / "report.json").is_file():
        return
    output.mkdir(parents=True, exist_ok=True)
    path = output / "stage_config.json"
    path.write_text(json.dumps(config))
    given = [part for name, folder in inputs.items() for part in ("--input", f"{name}={folder}")]
    command = [sys.executable, "-m", module, "--config", str(path), *given, "--output", str(output)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
