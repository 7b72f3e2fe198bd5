"""The chain's stages as Prefect tasks: what each takes, what it makes, and what it shows in the UI."""

import functools
import logging
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, cast

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.logging import get_run_logger
from prefect.states import Completed
from prefect.tasks import Task

from tasks.artifacts import Artifact, import_external
from tasks.certify.config import CertifyConfig
from tasks.config import Config
from tasks.display import Progress, run_was_cancelled, show_figures, show_log, when_api_is_back
from tasks.errors import InputError
from tasks.evaluate.config import EvaluateConfig
from tasks.export.config import ExportConfig
from tasks.merge_lora.config import MergeLoraConfig
from tasks.ppo.config import PPOConfig
from tasks.prepare_data.config import KINDS, PrepareDataConfig
from tasks.remove_value_head.config import RemoveValueHeadConfig
from tasks.reward_model.config import RewardModelConfig
from tasks.runner import Stage, StageCancelled, Watch, Workplace, run_stage
from tasks.sft.config import SFTConfig

P = ParamSpec("P")

ALREADY_DONE = "AlreadyDone"
HOUR_S = 3600
DATA = ("data",)
MODEL = ("model", "export")
REWARD_MODEL = ("reward_model", "reward_adapter")
CERTIFICATE = ("certificate",)
ACTOR_CRITIC = ("actor_critic", "actor_critic_adapter")
PPO_RESULT = (*ACTOR_CRITIC, "model", "adapter")  # the last two: another library's, with a value head in or beside it

PREPARE_DATA = Stage(
    "prepare_data", "tasks.prepare_data.run", needs={}, may_have={f"{kind}*": ("file",) for kind in KINDS}
)
SFT = Stage("sft", "tasks.sft.train", needs={"data": DATA}, may_have={"model": MODEL}, accelerate=True)
TRAIN_REWARD_MODEL = Stage(
    "reward_model", "tasks.reward_model.train", needs={"data": DATA, "model": MODEL}, accelerate=True
)
CERTIFY = Stage(
    "certify",
    "tasks.certify.run",
    needs={"data": DATA, "model": MODEL, "reward_model": REWARD_MODEL},
    may_have={"second_reward_model": REWARD_MODEL},
)
PPO = Stage(
    "ppo",
    "tasks.ppo.train",
    needs={"data": DATA, "policy": MODEL},
    may_have={
        "reward_model": REWARD_MODEL,
        "second_reward_model": REWARD_MODEL,
        "reward_*": REWARD_MODEL,
        "certificate": CERTIFICATE,  # not read: the lineage tells by it what PPO was allowed to follow
        "start_policy": (*MODEL, "adapter", *ACTOR_CRITIC),
        "start_value": (*REWARD_MODEL, *ACTOR_CRITIC),
        "reference": MODEL,
    },
    accelerate=True,
)
REMOVE_VALUE_HEAD = Stage(
    "remove_value_head",
    "tasks.remove_value_head.run",
    needs={"actor_critic": PPO_RESULT, "model": MODEL},
    may_have={"data": DATA},
)
MERGE_LORA = Stage(
    "merge_lora", "tasks.merge_lora.run", needs={"adapter": ("adapter",), "model": MODEL}, may_have={"data": DATA}
)
EVALUATE = Stage(
    "evaluate",
    "tasks.evaluate.run",
    needs={"data": DATA, "sft": MODEL, "ppo": MODEL},
    may_have={"base": MODEL, "champion": MODEL, "reward_model": REWARD_MODEL, "second_reward_model": REWARD_MODEL},
)
EXPORT = Stage(
    "export",
    "tasks.export.run",
    needs={"model": MODEL, "evaluation": ("evaluation",)},
    may_have={
        "data": DATA,
        "base": MODEL,
        "sft": (*MODEL, "adapter"),
        "reward_model": REWARD_MODEL,
        "second_reward_model": REWARD_MODEL,
        "certificate": CERTIFICATE,
        "ppo": PPO_RESULT,
        "adapter": ("adapter",),
        "adapter_base": MODEL,
    },
    wants_lineage=True,
)


def _worth_retrying(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    """A refused input and a cancelled run stay what they are; whatever else failed may pass on another try."""
    return not isinstance(state.data, InputError | StageCancelled)


def _stage_task(
    name: str, timeout_s: float = 4 * HOUR_S, gpu: bool = False
) -> Callable[[Callable[P, State[Artifact]]], Callable[P, Artifact]]:
    """Makes a function that gives a task's final state into that task, and gives its caller the artifact."""

    def decorate(function: Callable[P, State[Artifact]]) -> Callable[P, Artifact]:
        stage_task = task(
            name=name,
            tags=["gpu"] if gpu else None,
            timeout_seconds=timeout_s,
            retries=2,
            retry_delay_seconds=[10, 120],
            retry_condition_fn=_worth_retrying,
            cache_policy=NO_CACHE,
        )(function)

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> Artifact:
            state = stage_task(*args, **kwargs, return_state=True)
            return cast(Artifact, state.result())

        return call

    return decorate


@_stage_task("prepare_data")
def prepare_data(config: PrepareDataConfig, place: Workplace) -> State[Artifact]:
    """Checked, deduplicated and split data sets: kind `data`."""
    sources = {name: import_external(path, kind="file") for name, path in config.sources().items()}
    return _run(PREPARE_DATA, config, "data", place, sources)


@_stage_task("sft", timeout_s=48 * HOUR_S, gpu=True)
def sft(config: SFTConfig, data: Artifact, model: Artifact | None, place: Workplace) -> State[Artifact]:
    """The model after supervised fine-tuning: kind `model`, or `adapter` with LoRA."""
    makes = "adapter" if config.lora else "model"
    return _run(SFT, config, makes, place, {"data": data, "model": model})


@_stage_task("reward_model", timeout_s=48 * HOUR_S, gpu=True)
def reward_model(config: RewardModelConfig, data: Artifact, model: Artifact, place: Workplace) -> State[Artifact]:
    """A model of the preferences, started from the SFT model: kind `reward_model`, or `reward_adapter` with LoRA."""
    makes = "reward_adapter" if config.lora else "reward_model"
    return _run(TRAIN_REWARD_MODEL, config, makes, place, {"data": data, "model": model})


@_stage_task("second_reward_model", timeout_s=48 * HOUR_S, gpu=True)
def second_reward_model(
    config: RewardModelConfig, data: Artifact, model: Artifact, place: Workplace
) -> State[Artifact]:
    """As reward_model, by other options: what judges PPO's result, or holds its score to account, from outside."""
    makes = "reward_adapter" if config.lora else "reward_model"
    inputs = {"data": data, "model": model}
    return _run(TRAIN_REWARD_MODEL, config, makes, place, inputs, shown_as="second_reward_model")


@_stage_task("certify", gpu=True)
def certify(
    config: CertifyConfig,
    data: Artifact,
    model: Artifact,
    reward_model: Artifact,
    second_reward_model: Artifact | None,
    place: Workplace,
) -> State[Artifact]:
    """What the reward model is worth before PPO follows it, with a verdict: kind `certificate`."""
    inputs = {"data": data, "model": model, "reward_model": reward_model, "second_reward_model": second_reward_model}
    return _run(CERTIFY, config, "certificate", place, inputs)


@_stage_task("ppo", timeout_s=96 * HOUR_S, gpu=True)
def ppo(
    config: PPOConfig, data: Artifact, policy: Artifact, scoring: Mapping[str, Artifact | None], place: Workplace
) -> State[Artifact]:
    """Policy and value model after PPO: kind `actor_critic`, or `actor_critic_adapter` where adapters were trained.

    `scoring` holds the chain's reward models and certificate; a second reward model that no reward names is left out.
    """
    makes = "actor_critic_adapter" if config.has_adapters else "actor_critic"
    used = {
        name: artifact
        for name, artifact in scoring.items()
        if name != "second_reward_model" or config.uses_second_reward_model
    }
    sources = {name: import_external(path) for name, path in config.sources().items()}
    return _run(PPO, config, makes, place, {"data": data, "policy": policy, **used, **sources})


@_stage_task("remove_value_head")
def remove_value_head(
    config: RemoveValueHeadConfig, actor_critic: Artifact, model: Artifact, data: Artifact, place: Workplace
) -> State[Artifact]:
    """The policy alone: kind `model`, or `adapter` if PPO trained one. `data` has the prompts it is compared on."""
    makes = "adapter" if actor_critic.kind in ("actor_critic_adapter", "adapter") else "model"
    return _run(REMOVE_VALUE_HEAD, config, makes, place, {"actor_critic": actor_critic, "model": model, "data": data})


@_stage_task("merge_lora")
def merge_lora(
    config: MergeLoraConfig, adapter: Artifact, model: Artifact | None, data: Artifact, place: Workplace
) -> State[Artifact]:
    """Base and adapter as one plain model: kind `model`. `data` has the prompts that it is compared on."""
    return _run(MERGE_LORA, config, "model", place, {"adapter": adapter, "model": model, "data": data})


@_stage_task("evaluate", gpu=True)
def evaluate(
    config: EvaluateConfig,
    data: Artifact,
    sft: Artifact,
    ppo: Artifact,
    others: Mapping[str, Artifact | None],
    place: Workplace,
) -> State[Artifact]:
    """PPO against SFT on held-out prompts, and against the base and champion among `others`: kind `evaluation`."""
    return _run(EVALUATE, config, "evaluation", place, {"data": data, "sft": sft, "ppo": ppo, **others})


@_stage_task("export")
def export(
    config: ExportConfig,
    model: Artifact,
    evaluation: Artifact,
    parents: Mapping[str, Artifact | None],
    place: Workplace,
) -> State[Artifact]:
    """The model as users load it, with its card: kind `export`. `parents` are described on the card."""
    return _run(EXPORT, config, "export", place, {"model": model, "evaluation": evaluation, **parents})


def _run(
    stage: Stage,
    config: Config,
    makes: str,
    place: Workplace,
    inputs: Mapping[str, Artifact | None],
    shown_as: str | None = None,
) -> State[Artifact]:
    """Run the stage with the inputs that there are, and show its progress and figures in the UI, maybe by another name.

    The state that it ends in holds the artifact, and is named AlreadyDone if that was in the store before.
    """
    given = {name: artifact for name, artifact in inputs.items() if artifact is not None}
    name = shown_as or stage.name
    watch = Watch(Progress(name), run_was_cancelled, functools.partial(show_log, name))
    outcome = run_stage(stage, config, given, makes, place, watch)
    get_run_logger().info("%s is at %s", makes, outcome.artifact.uri)
    when_api_is_back(functools.partial(show_figures, name, outcome.artifact, place))
    state = ALREADY_DONE if outcome.already_done else "Completed"
    return Completed(name=state, message=outcome.artifact.uri, data=outcome.artifact)


class _RefusalsWithoutTraceback(logging.Filter):
    """Prefect logs a task's exception with its traceback; for a refused input the message is all there is to know."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info and isinstance(record.exc_info[1], InputError):
            record.msg, record.args, record.exc_info = f"refused: {record.exc_info[1]}", (), None
        return True


logging.getLogger("tasks").setLevel(logging.INFO)  # pyproject.toml makes it part of the run's log
for _name in ("prefect.task_runs", "prefect.flow_runs"):
    logging.getLogger(_name).addFilter(_RefusalsWithoutTraceback())
