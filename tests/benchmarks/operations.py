"""Floating-point operations of an iteration by the formulas of docs/ppo.md: products with weights, not attention."""

import time
from collections.abc import Mapping
from statistics import mean, median

import torch

from tests.benchmarks.workloads import Workload, make_prompts

WIDTH, NUM_PRODUCTS = 1024, 30


def operations(workload: Workload, mode: str, response_length: float) -> Mapping[str, float]:
    """Of each phase of a mode's iteration, with responses of `response_length` tokens in the mean.

    Old logprobs come from decoding. Measuring is a forward of the reference with logits, one for the values and one of
    the reward model without; in the update full tuning takes 6 operations a weight and token, a frozen base 4.
    """
    is_separate, layers, head = mode == "separate", layer_weights(workload), workload.vocab_size * workload.hidden_size
    predicted = workload.batch_size * response_length
    read = workload.batch_size * mean(len(prompt) for prompt in make_prompts(workload))
    forward = 2 * layers * (read + predicted)
    share = workload.trainable_layers / workload.num_layers if mode == "cached" else 1.0
    epoch = 2 * 3 * forward if is_separate else 2 * forward * share
    return {
        "rollout": forward + 2 * head * predicted,
        "measure": (2 * share + 1) * forward + 2 * head * predicted,
        "update": workload.num_ppo_epochs * (epoch + (6 if is_separate else 4) * head * predicted),
    }


def layer_weights(workload: Workload) -> int:
    """Weights of all layers' matrices, embeddings and head apart."""
    width, heads = workload.hidden_size, workload.num_kv_heads / workload.num_heads
    attention = 2 * width**2 + 2 * int(width**2 * heads)
    return workload.num_layers * (attention + 3 * width * workload.intermediate_size)


def matrix_rate(num_threads: int, precision: str) -> float:
    """Floating-point operations a second of a float32 product of 1024 x 1024 matrices on this machine's CPU."""
    before = torch.get_num_threads(), torch.get_float32_matmul_precision()
    torch.set_num_threads(num_threads)
    torch.set_float32_matmul_precision(precision)
    try:
        left, right = torch.randn(2, WIDTH, WIDTH)
        return 2 * WIDTH**3 / median(_seconds(left, right) for _ in range(NUM_PRODUCTS))
    finally:
        torch.set_num_threads(before[0])
        torch.set_float32_matmul_precision(before[1])


def _seconds(left: torch.Tensor, right: torch.Tensor) -> float:
    started = time.perf_counter()
    left @ right
    return time.perf_counter() - started
