"""The demo at its smallest: every stage works, and nothing is learnt."""

SMALLEST = {
    "prepare_data.sft.arguments": {"seed": 0, "num_records": 120},
    "prepare_data.preferences.arguments": {"seed": 0, "num_records": 120},
    "prepare_data.prompts.arguments": {"seed": 0, "num_records": 120},
    "sft.from_scratch.hidden_size": 16,
    "sft.from_scratch.num_layers": 1,
    "sft.from_scratch.num_heads": 2,
    "sft.max_steps": 3,
    "reward_model.max_steps": 2,
    "certify.num_prompts": 4,
    "certify.sampling.response_length": 8,
    "ppo.total_episodes": 16,
    "ppo.batch_size": 8,
    "ppo.num_eval_prompts": 4,
    "ppo.sampling.response_length": 8,
    "evaluate.num_prompts": 4,
    "evaluate.sampling.response_length": 8,
    "certify.accept": ["pair_accuracy", "pair_accuracy_low", "score_spread", "score_shift"],
    **dict.fromkeys(("gate.tax", "gate.length_change", "gate.metric_drop")),
}
