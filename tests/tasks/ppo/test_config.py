import pytest
from pydantic import ValidationError

from tasks.ppo.config import PPOConfig


def test_the_number_of_iterations_is_rounded_up_and_gives_the_number_of_steps() -> None:
    config = PPOConfig(total_episodes=65, batch_size=32, num_mini_batches=4, num_ppo_epochs=3)
    assert config.num_iterations == 3
    assert config.num_steps == 3 * 3 * 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 96, "num_mini_batches": 7}, "batch_size 96 is not divisible by num_mini_batches 7"),
        ({"models": "separate", "dtype": "bfloat16"}, "Set dtype float32, or models shared"),
        ({"lora": {"dropout": 0.1}}, "lora.dropout 0.1"),
        ({"sampling": {"min_new_tokens": 9, "response_length": 8}}, "sampling.min_new_tokens 9"),
        ({"kl_coeff": 0.1}, "kl_coeff"),
        ({"cliprange": 0}, "cliprange"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options, message) -> None:
    with pytest.raises(ValidationError, match=message):
        PPOConfig.model_validate(options)
