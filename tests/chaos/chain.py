"""The demo's nine stages by the runner alone, in one process without Prefect: what most kills are aimed at.

    python -m tests.chaos.chain --file pipelines.yaml [--until STAGE]

The store, the servers and the work folder come from the environment, as for every run of the chain.
"""

import argparse
import sys
from pathlib import Path
from typing import get_args

import yaml

from flows.pipeline import Pipeline
from infra.entries import read_entries
from tasks import stages
from tasks.artifacts import Artifact, import_external
from tasks.certify.config import Threshold
from tasks.config import Config
from tasks.errors import InputError
from tasks.runner import PROJECT, Stage, StageFailed, Watch, run_stage
from tests.smallest import SMALLEST

ENTRY = "demo"
SIZES = SMALLEST | {
    "sft.max_steps": 24,
    "sft.save_steps": 4,
    "reward_model.max_steps": 12,
    "reward_model.per_device_batch_size": 8,
    "reward_model.save_steps": 3,
    "certify.accept": list(get_args(Threshold)),
    "ppo.total_episodes": 80,
    "ppo.checkpoint_every": 2,
}


def main() -> int:
    """The exit status: 0 when the chain is done, 1 when a stage failed, 2 when something was refused."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", type=Path, required=True, help="a pipelines file with the entry `demo`")
    parser.add_argument("--until", help="the last stage to run; default: all")
    arguments = parser.parse_args()
    try:
        _run_chain(read_entries(arguments.file)[ENTRY].parameters.resolved(), arguments.until)
    except (InputError, StageFailed) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    return 0


def write_pipelines(path: Path, num_processes: int = 1) -> Path:
    """A pipelines file whose entry `demo` is the project's at the smallest sizes, with checkpoints every few steps."""
    content = yaml.safe_load((PROJECT / "pipelines.yaml").read_text())
    [demo] = [entry for entry in content["deployments"] if entry["name"] == ENTRY]
    config = "infra/accelerate/cpu.yaml" if num_processes == 1 else f"infra/accelerate/cpu_{num_processes}.yaml"
    demo["parameters"]["overrides"] = SIZES | {"accelerate_config": config}
    path.write_text(yaml.safe_dump(content | {"deployments": [demo]}, sort_keys=False))
    return path


def _run_chain(options: Pipeline, until: str | None) -> None:
    place = options.workplace()

    def run(stage: Stage, config: Config, makes: str, **inputs: Artifact) -> Artifact:
        artifact = run_stage(stage, config, inputs, makes, place, Watch(lambda record: None, lambda: False)).artifact
        print(f"{makes} is at {artifact.uri}", flush=True)
        if stage.name == until:
            sys.exit(0)
        return artifact

    sources = {name: import_external(path, kind="file") for name, path in options.prepare_data.sources().items()}
    data = run(stages.PREPARE_DATA, options.prepare_data, "data", **sources)
    sft = run(stages.SFT, options.sft, "model", data=data)
    assert options.reward_model is not None
    reward_model = run(stages.TRAIN_REWARD_MODEL, options.reward_model, "reward_model", data=data, model=sft)
    assert options.certify is not None
    scored = {"data": data, "reward_model": reward_model}
    certificate = run(stages.CERTIFY, options.certify, "certificate", model=sft, **scored)
    ppo = run(stages.PPO, options.ppo, "actor_critic_adapter", policy=sft, certificate=certificate, **scored)
    adapter = run(stages.REMOVE_VALUE_HEAD, options.remove_value_head, "adapter", actor_critic=ppo, model=sft)
    tuned = run(stages.MERGE_LORA, options.merge_lora, "model", adapter=adapter, model=sft)
    evaluation = run(stages.EVALUATE, options.evaluate, "evaluation", sft=sft, ppo=tuned, **scored)
    parents = {"sft": sft, "certificate": certificate, "ppo": ppo, **scored}
    run(stages.EXPORT, options.export, "export", model=tuned, evaluation=evaluation, **parents)


if __name__ == "__main__":
    sys.exit(main())
