"""Options of reward-model training."""

from pydantic import Field

from tasks.trainer_config import TrainerConfig


class RewardModelConfig(TrainerConfig):
    """A model of pairwise preferences (Bradley and Terry; Ouyang et al. 2022, arXiv:2203.02155, equation 1)."""

    num_demonstrations: int = Field(512, ge=0)
    """SFT records whose mean score becomes 0 (Ouyang et al. 2022, section 3.4); 0 = not centred."""
    center_rewards_coefficient: float = Field(0.0, ge=0)
    """Weight of (score of chosen + score of rejected)^2 in the loss (arXiv:2312.09244); 0 = none."""
    token_dropout: float = Field(0.0, ge=0, lt=1)
    """Share of the tokens that are blanked in training, EOS excepted, so that no single word decides (word dropout;
    Iyyer et al. 2015): against overfitting on few pairs."""
