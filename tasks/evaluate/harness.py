"""Tasks of EleutherAI's lm-evaluation-harness, by name; the extra `harness` installs it."""

import re
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from tasks.errors import InputError
from tasks.evaluate.answers import Model
from tasks.evaluate.config import Harness


def check_harness(config: Harness) -> None:
    """Raise InputError if the harness is not installed, or does not know a task."""
    if find_spec("lm_eval") is None:
        raise InputError(
            "evaluate.harness names tasks of the lm-evaluation-harness, which is not installed where the stage runs. "
            "Install the extra: pip install '.[harness]'."
        )
    known = _task_manager(config).match_tasks(config.tasks)
    if unknown := [task for task in config.tasks if task not in known]:
        raise InputError(
            f"evaluate.harness: the lm-evaluation-harness knows no task {', '.join(unknown)}. `lm-eval ls tasks` lists "
            "those that it knows; include_path adds a folder of your own."
        )


def harness_figures(config: Harness, model: Model) -> dict[str, float]:
    """TASK_METRIC of every task for this model; with a metric's filter behind it, unless there is none."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    found = lm_eval.simple_evaluate(
        model=HFLM(pretrained=model.lm, tokenizer=model.own, batch_size=config.batch_size),
        tasks=config.tasks,
        num_fewshot=config.num_fewshot,
        limit=config.limit,
        apply_chat_template=config.apply_chat_template,
        bootstrap_iters=0,
        log_samples=False,
        task_manager=_task_manager(config),
    )
    return read_results(found["results"])


def read_results(results: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """The harness's numbers by our names: {"arc": {"acc,none": 0.5}} gives arc_acc; standard errors are left out."""
    figures = {}
    for task, measured in results.items():
        for key, value in measured.items():
            metric, _, filtered = key.partition(",")
            if isinstance(value, int | float) and filtered and not metric.endswith("_stderr"):
                name = f"{task}_{metric}" + ("" if filtered == "none" else f"_{filtered}")
                figures[re.sub(r"\W", "_", name)] = float(value)
    return figures


def _task_manager(config: Harness) -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=config.include_path)
