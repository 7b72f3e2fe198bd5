"""The middle of the chain: what scores a response, and the proof that PPO may follow it."""

from collections.abc import Mapping
from dataclasses import dataclass

from flows.pipeline import Pipeline
from tasks import stages
from tasks.artifacts import Artifact
from tasks.certification import require_open
from tasks.runner import Workplace


@dataclass(frozen=True)
class RewardModels:
    """The reward models that there are, and the first one's certificate."""

    first: Artifact | None
    second: Artifact | None
    certificate: Artifact | None

    def by_name(self) -> dict[str, Artifact | None]:
        """As the stages after them name their inputs."""
        return {
            "reward_model": self.first,
            "second_reward_model": self.second,
            "certificate": self.certificate,
        }


def reward_models(
    options: Pipeline, place: Workplace, existing: Mapping[str, Artifact], *, data: Artifact, sft: Artifact
) -> RewardModels:
    """The reward models, trained where they do not exist; the first is certified unless PPO's result exists already.

    Raises FailedByCertificate where PPO must not follow it.
    """
    first, second = existing.get("reward_model"), existing.get("second_reward_model")
    if first is None and options.reward_model is not None:
        first = stages.reward_model(options.reward_model, data, sft, place)
    if second is None and options.second_reward_model is not None:
        second = stages.second_reward_model(options.second_reward_model, data, sft, place)
    if first is None or options.certify is None or "ppo" in existing:
        return RewardModels(first, second, None)
    certificate = stages.certify(options.certify, data, sft, first, second, place)
    require_open(certificate, place)
    return RewardModels(first, second, certificate)
