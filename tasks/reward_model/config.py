"""Options of reward-model training."""

from typing import Self

from pydantic import Field, model_validator

from tasks.parts import Half
from tasks.trainer_config import TrainerConfig


class RewardModelConfig(TrainerConfig):
    """A model of pairwise preferences (Bradley and Terry; Ouyang et al. 2022, arXiv:2203.02155, equation 1)."""

    trainable_layers: int | None = Field(None, ge=1)
    """With LoRA the layers that get adapters: the last so many; None = all. Up to ppo.trainable_layers it shares the
    states of the layers below with the policy."""
    half: Half | None = None
    """Train on one half of the training pairs, by a hash of the prompt: reward models of different halves share no
    prompt, so that one can judge what follows the other. None = all pairs."""
    num_demonstrations: int = Field(512, ge=0)
    """SFT records whose mean score becomes 0 (Ouyang et al. 2022, section 3.4); 0 = not centred."""
    center_rewards_coefficient: float = Field(0.0, ge=0)
    """Weight of (score of chosen + score of rejected)^2 in the loss (arXiv:2312.09244); 0 = none."""
    token_dropout: float = Field(0.0, ge=0, lt=1)
    """Share of the tokens that are blanked in training, EOS excepted, so that no single word decides (word dropout;
    Iyyer et al. 2015): against overfitting on few pairs."""

    @model_validator(mode="after")
    def _check_layers(self) -> Self:
        if self.trainable_layers is not None and self.lora is None:
            raise ValueError(
                "trainable_layers says where LoRA adapters stand, but lora is not set. Set lora, or leave it out."
            )
        return self
