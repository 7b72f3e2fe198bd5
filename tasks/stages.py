"""The chain's stages as Prefect tasks: what each takes, what it makes, and what it shows in the UI."""

import base64
import contextlib
import functools
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ParamSpec, cast
from uuid import UUID

import httpx
from prefect import get_client, task
from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, StateType, TaskRun
from prefect.exceptions import PrefectHTTPStatusError
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.states import Completed
from prefect.tasks import Task

from tasks.artifacts import Artifact, import_external, read_files
from tasks.config import Config
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
LOG_EVERY_S = 5.0
DRAW_EVERY_S = 10.0
NUM_FIGURES_IN_LINE = 4
DATA = ("data",)
MODEL = ("model", "export")
REWARD_MODEL = ("reward_model", "reward_adapter")
ACTOR_CRITIC = ("actor_critic", "actor_critic_adapter")

PREPARE_DATA = Stage(
    "prepare_data", "tasks.prepare_data.run", needs={}, may_have={f"{kind}*": ("file",) for kind in KINDS}
)
SFT = Stage("sft", "tasks.sft.train", needs={"data": DATA}, may_have={"model": MODEL}, accelerate=True)
TRAIN_REWARD_MODEL = Stage(
    "reward_model", "tasks.reward_model.train", needs={"data": DATA, "model": MODEL}, accelerate=True
)
PPO = Stage(
    "ppo",
    "tasks.ppo.train",
    needs={"data": DATA, "policy": MODEL},
    may_have={
        "reward_model": REWARD_MODEL,
        "reward_*": REWARD_MODEL,
        "start_policy": (*MODEL, "adapter", *ACTOR_CRITIC),
        "start_value": (*REWARD_MODEL, *ACTOR_CRITIC),
        "reference": MODEL,
    },
    accelerate=True,
)
REMOVE_VALUE_HEAD = Stage(
    "remove_value_head", "tasks.remove_value_head.run", needs={"actor_critic": ACTOR_CRITIC, "model": MODEL}
)
MERGE_LORA = Stage("merge_lora", "tasks.merge_lora.run", needs={"adapter": ("adapter",), "model": MODEL})
EVALUATE = Stage(
    "evaluate",
    "tasks.evaluate.run",
    needs={"data": DATA, "sft": MODEL, "ppo": MODEL},
    may_have={"reward_model": REWARD_MODEL},
)
EXPORT = Stage(
    "export",
    "tasks.export.run",
    needs={"model": MODEL, "evaluation": ("evaluation",)},
    may_have={"data": DATA, "sft": (*MODEL, "adapter"), "reward_model": REWARD_MODEL, "ppo": ACTOR_CRITIC},
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


@_stage_task("ppo", timeout_s=96 * HOUR_S, gpu=True)
def ppo(
    config: PPOConfig, data: Artifact, policy: Artifact, reward_model: Artifact | None, place: Workplace
) -> State[Artifact]:
    """Policy and value model after PPO: kind `actor_critic`, or `actor_critic_adapter` where adapters were trained."""
    makes = "actor_critic_adapter" if config.has_adapters else "actor_critic"
    sources = {name: import_external(path) for name, path in config.sources().items()}
    return _run(PPO, config, makes, place, {"data": data, "policy": policy, "reward_model": reward_model, **sources})


@_stage_task("remove_value_head")
def remove_value_head(
    config: RemoveValueHeadConfig, actor_critic: Artifact, model: Artifact, place: Workplace
) -> State[Artifact]:
    """The policy alone: kind `model`, or `adapter` if PPO trained one."""
    makes = "adapter" if actor_critic.kind == "actor_critic_adapter" else "model"
    return _run(REMOVE_VALUE_HEAD, config, makes, place, {"actor_critic": actor_critic, "model": model})


@_stage_task("merge_lora")
def merge_lora(config: MergeLoraConfig, adapter: Artifact, model: Artifact | None, place: Workplace) -> State[Artifact]:
    """Base and adapter as one plain model: kind `model`."""
    return _run(MERGE_LORA, config, "model", place, {"adapter": adapter, "model": model})


@_stage_task("evaluate", gpu=True)
def evaluate(
    config: EvaluateConfig,
    data: Artifact,
    sft: Artifact,
    ppo: Artifact,
    reward_model: Artifact | None,
    place: Workplace,
) -> State[Artifact]:
    """The SFT model against the PPO model on held-out prompts: kind `evaluation`."""
    inputs = {"data": data, "sft": sft, "ppo": ppo, "reward_model": reward_model}
    return _run(EVALUATE, config, "evaluation", place, inputs)


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


def read_report(artifact: Artifact, place: Workplace) -> dict[str, Any]:
    """The figures that the stage wrote of its own work; empty for what no stage of ours made."""
    report: dict[str, Any] = json.loads(read_files(place.store, artifact, "report.json").get("report.json", "{}"))
    return report


def _run(
    stage: Stage, config: Config, makes: str, place: Workplace, inputs: Mapping[str, Artifact | None]
) -> State[Artifact]:
    """Run the stage with the inputs that there are, and show its progress and its figures in the UI.

    The state that it ends in holds the artifact, and is named AlreadyDone if that was in the store before.
    """
    given = {name: artifact for name, artifact in inputs.items() if artifact is not None}
    outcome = run_stage(stage, config, given, makes, place, Watch(_Progress(stage.name), _run_was_cancelled))
    get_run_logger().info("%s is at %s", makes, outcome.artifact.uri)
    _show(stage.name, outcome.artifact, place)
    name = ALREADY_DONE if outcome.already_done else "Completed"
    return Completed(name=name, message=outcome.artifact.uri, data=outcome.artifact)


class _Progress:
    """Shows a stage's metrics while it runs: a line in the log, and a bar in the UI."""

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self.logged_at = self.drawn_at = 0.0
        self.artifact_id: UUID | None = None

    def __call__(self, record: Mapping[str, float]) -> None:
        now, step, total = time.monotonic(), record["step"], record["total_steps"]
        if now - self.logged_at >= LOG_EVERY_S or step == total:
            self.logged_at = now
            get_run_logger().info(progress_line(self.stage, record))
        if now - self.drawn_at >= DRAW_EVERY_S or step == total:
            self.drawn_at = now
            self._draw(100 * step / total)

    def _draw(self, percent: float) -> None:
        with _api_may_be_away():
            if self.artifact_id is None:
                key = f"{_dashed(self.stage)}-progress"
                made = create_progress_artifact(percent, key=key, description=f"Progress of {self.stage}")
                self.artifact_id = cast(UUID, made)
            else:
                update_progress_artifact(self.artifact_id, percent)


def progress_line(stage: str, record: Mapping[str, float]) -> str:
    """`record` as one line: a bar of 20 characters, the step, and the first few figures."""
    step, total = int(record["step"]), int(record["total_steps"])
    filled = 20 * step // total
    figures = [f"{name} {value:.4g}" for name, value in record.items() if name not in ("step", "total_steps", "time")]
    return f"{stage:<13} {'█' * filled}{'░' * (20 - filled)} {step}/{total}  {'  '.join(figures[:NUM_FIGURES_IN_LINE])}"


def _run_was_cancelled() -> bool:
    """Whether the API says that this flow run shall end; a worker that was restarted does not tell us."""
    with _api_may_be_away(), get_client(sync_client=True) as client:
        state = client.read_flow_run(UUID(flow_run.id)).state
        return state is not None and state.type in (StateType.CANCELLING, StateType.CANCELLED, StateType.CRASHED)
    return False


@contextlib.contextmanager
def _api_may_be_away() -> Iterator[None]:
    """Training goes on while Prefect's API cannot be reached."""
    try:
        yield
    except (httpx.TransportError, httpx.HTTPStatusError, PrefectHTTPStatusError) as error:
        logging.getLogger(__name__).warning("Prefect's API is away: %s", error)


def _show(stage: str, artifact: Artifact, place: Workplace) -> None:
    """A table of the stage's figures, and its report and curves as Markdown, as artifacts of the run."""
    figures = read_report(artifact, place)
    rows = [{"figure": name, "value": value} for name, value in figures.items() if isinstance(value, int | float | str)]
    create_table_artifact(table=rows, key=f"{_dashed(stage)}-figures", description=f"`{artifact.uri}`")
    pages = [_as_markdown(*page) for page in read_files(place.store, artifact, "report.md", "*.png").items()]
    if pages:
        create_markdown_artifact("\n\n".join(pages), key=f"{_dashed(stage)}-report", description=f"`{artifact.uri}`")


def _as_markdown(name: str, content: bytes) -> str:
    if name.endswith(".png"):
        return f"![{name}](data:image/png;base64,{base64.b64encode(content).decode()})"
    return content.decode()


def _dashed(name: str) -> str:
    return name.replace("_", "-")


class _RefusalsWithoutTraceback(logging.Filter):
    """Prefect logs a task's exception with its traceback; for a refused input the message is all there is to know."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info and isinstance(record.exc_info[1], InputError):
            record.msg, record.args, record.exc_info = f"refused: {record.exc_info[1]}", (), None
        return True


logging.getLogger("tasks").setLevel(logging.INFO)  # pyproject.toml makes it part of the run's log
for _name in ("prefect.task_runs", "prefect.flow_runs"):
    logging.getLogger(_name).addFilter(_RefusalsWithoutTraceback())
