"""The engine that the options name."""

from transformers import PreTrainedTokenizerBase

from tasks.actor_critic.models import Models
from tasks.engines.config import EngineConfig
from tasks.engines.engine import Engine, HfEngine
from tasks.engines.vllm import VllmEngine
from tasks.models.modeling import stop_token_ids
from tasks.processes import Processes
from tasks.templates import ConversationTemplate, with_stops


def load_engine(
    config: EngineConfig,
    template: ConversationTemplate | None,
    models: Models,
    tokenizer: PreTrainedTokenizerBase,
    processes: Processes,
) -> Engine:
    """What draws the responses, which end as the template and the policy's own generation config say."""
    sampling, template_stop_ids = with_stops(template, config.sampling, tokenizer)
    stop_ids = [*stop_token_ids(models.language_model, tokenizer), *template_stop_ids]
    if config.rollout_engine == "hf":
        return HfEngine(models, sampling, stop_ids, tokenizer, config.rollout_batch_size)
    return VllmEngine(config.vllm, models, sampling, stop_ids, tokenizer, processes)
